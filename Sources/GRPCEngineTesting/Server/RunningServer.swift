package import GRPCEngineServer
package import GRPCEngineTransport
internal import GRPCEngineWire
package import NIOCore

/// A server on a port of its own, for one test.
package final class RunningServer {
  package let server: Server
  /// Where it listens: a host and port, or `unix:` and a path.
  package let address: SocketAddress

  private init(server: Server, address: SocketAddress) {
    self.server = server
    self.address = address
  }

  /// Connects and greets.
  package func connect(
    settings: [(UInt16, UInt32)] = [],
    receiveBuffer: Int? = nil
  ) throws -> TestClient {
    let connection = try SocketConnection(to: self.address, receiveBuffer: receiveBuffer)
    let client = TestClient(connection)
    try client.handshake(settings)
    return client
  }

  /// Runs `body` with a server, and stops it.
  ///
  /// - Parameter address: `127.0.0.1:0` or `unix:` and a path.
  /// - Throws: what `body` throws, and `TestTimeout` when a call outlives its server: every call
  ///   that was admitted must be released by then.
  package static func run(
    _ methods: [String: any MethodHandler],
    configuration: ServerConfiguration = ServerConfiguration(),
    address: String = "127.0.0.1:0",
    credentials: ServerCredentials? = nil,
    observeIdleness: (@Sendable () -> Void)? = nil,
    _ body: (RunningServer) throws -> Void
  ) throws {
    let server = Server(configuration: configuration)
    if let observeIdleness { server.observeIdleness(observeIdleness) }
    for (path, handler) in methods { server.methods.register(handler, for: path) }
    defer { HandledCalls.forget(Array(methods.values)) }
    let port = try server.addPort(address, credentials: credentials)
    let socketAddress =
      try address.hasPrefix("unix:")
      ? SocketAddress(unixDomainSocketPath: String(address.dropFirst("unix:".count)))
      : SocketAddress(ipAddress: "127.0.0.1", port: port)
    try server.start()
    let running = RunningServer(server: server, address: socketAddress)
    do {
      try body(running)
    } catch {
      try? running.stop()
      throw error
    }
    try running.stop()
  }

  private func stop() throws {
    let hasStopped = Monitor(false)
    self.server.drain { hasStopped.update { $0 = true } }
    self.server.cancelAllCalls()
    try hasStopped.wait("the server's end") { $0 }
    try self.waitForRelease()
  }

  /// Waits until no call counts any more.
  package func waitForRelease() throws {
    try poll("the release of every call") { self.server.admission.activeCalls == 0 }
  }
}
