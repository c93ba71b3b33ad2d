package import GRPCEngineServer
package import GRPCEngineTesting
internal import GRPCEngineTransport

/// A server with one embedded connection, for one test.
package struct EmbeddedServer {
  package let server: Server
  package let connection: EmbeddedConnection
  package let client: TestClient

  /// Runs `body` with a server whose client has greeted, and lets the client leave.
  ///
  /// - Throws: what `body` throws, and `CallsRemain` when a call outlives its connection.
  package static func run(
    _ methods: [String: any MethodHandler],
    configuration: ServerConfiguration = ServerConfiguration(),
    _ body: (EmbeddedServer) throws -> Void
  ) throws {
    let server = Server(configuration: configuration)
    for (path, handler) in methods { server.methods.register(handler, for: path) }
    defer { HandledCalls.forget(Array(methods.values)) }
    let connection = try EmbeddedConnection(configuration.transport, acceptor: server)
    let client = TestClient(connection)
    try client.handshake()
    try body(EmbeddedServer(server: server, connection: connection, client: client))
    connection.close()
    let count = server.admission.activeCalls
    if count != 0 || connection.registry.count != 0 { throw CallsRemain(count: count) }
  }

  package struct CallsRemain: Error {
    package let count: Int
  }
}
