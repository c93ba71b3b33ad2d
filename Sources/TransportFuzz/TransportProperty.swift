internal import GRPCEngineServer
internal import GRPCEngineTesting
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore

/// What must hold of a server whatever a peer sends: it answers in HTTP/2 and gRPC, ends a connection
/// that has failed, forgets its calls when it goes, and serves others all the while. That memory stays
/// bounded is libFuzzer's to see.
package enum TransportProperty {
  /// The methods of the server; the last one is not there.
  static let paths = [
    "/t/echo", "/t/metadata", "/t/status", "/t/silent", "/t/held", "/t/countdown", "/t/sum",
    "/t/conversation", "/t/hasty", "/t/missing",
  ]

  /// Small limits, so that short inputs pass them.
  private static func configuration() -> ServerConfiguration {
    var configuration = ServerConfiguration()
    configuration.maximumConcurrentCalls = 20
    configuration.compression = .gzip
    configuration.transport.maxReceiveMessageLength = 32 * 1024
    configuration.transport.http2.maxConcurrentStreams = 24
    configuration.transport.http2.sendBufferSize = 4096
    configuration.transport.http2.connectionWindowSize = 128 * 1024
    configuration.transport.memory.connection = 128 * 1024
    configuration.transport.memory.pool = 192 * 1024
    configuration.transport.keepalive.interval = .seconds(10)
    configuration.transport.keepalive.timeout = .seconds(5)
    configuration.transport.handshakeTimeout = .seconds(5)
    configuration.transport.maxConnectionIdle = .seconds(30)
    configuration.transport.maxConnectionAge = .seconds(60)
    configuration.transport.maxConnectionAgeGrace = .seconds(10)
    return configuration
  }

  private static func handlers() -> [String: TestHandler] {
    [
      "/t/echo": .echo(),
      "/t/metadata": .metadataEcho(),
      "/t/status": .status(Status(code: .aborted, details: "no\n")),
      "/t/silent": .silent(),
      "/t/held": .silent(startsOnFirstMessage: true),
      "/t/countdown": .countdown(),
      "/t/sum": .sum(),
      "/t/conversation": .conversation(),
      "/t/hasty": .hasty(),
    ]
  }

  /// Runs one input. What traps or hangs is a find too, so this may not return.
  ///
  /// - Returns: what is wrong, or `nil`.
  package static func violation(by input: [UInt8]) -> String? {
    if let violation = healthViolation(input) { return "health: \(violation)" }
    let configuration = Self.configuration()
    let server = Server(configuration: configuration)
    let handlers = Self.handlers()
    for (path, handler) in handlers { server.methods.register(handler, for: path) }
    defer { HandledCalls.forget(Array(handlers.values)) }
    do {
      let hostile = try EmbeddedConnection(
        configuration.transport,
        acceptor: server,
        registry: ConnectionRegistry(memory: configuration.transport.memory.pool)
      )
      var check = AnswerCheck()
      if let violation = Self.play(input, on: hostile, &check) {
        return violation
      }
      if let violation = try Self.neighbourViolation(server, configuration) { return violation }
      hostile.close()
      if let violation = Self.drain(hostile, into: &check) { return violation }
      if hostile.registry.count != 0 { return "the connection is not forgotten" }
      if hostile.registry.memory.held != 0 {
        return "\(hostile.registry.memory.held) bytes stay charged"
      }
      if server.admission.activeCalls != 0 {
        return "\(server.admission.activeCalls) calls outlive their connection"
      }
      for handler in handlers.values {
        let entries = handler.handled.entries.current
        if entries.calls.count != entries.terminations.count { return "a call has no end" }
      }
      return nil
    } catch {
      return "\(error)"
    }
  }

  private static func play(
    _ input: [UInt8],
    on connection: EmbeddedConnection,
    _ check: inout AnswerCheck
  ) -> String? {
    var script = Script(ByteBuffer(bytes: input))
    connection.write(script.greeting())
    while connection.isOpen, let step = script.next() {
      switch step {
      case .send(let bytes): connection.write(bytes)
      case .wait(let amount): connection.advance(by: amount)
      case .leave: connection.close()
      }
      if let violation = Self.drain(connection, into: &check) { return violation }
    }
    connection.write(script.rest())
    return Self.drain(connection, into: &check)
  }

  private static func drain(
    _ connection: EmbeddedConnection,
    into check: inout AnswerCheck
  ) -> String? {
    while let bytes = try? connection.read("more") {
      if let violation = check.received(bytes) { return violation }
    }
    if check.hasFailed, connection.isOpen { return "a failed connection stays open" }
    return nil
  }

  /// Another connection of the same server is served as if nothing had happened.
  private static func neighbourViolation(
    _ server: Server,
    _ configuration: ServerConfiguration
  ) throws -> String? {
    let client = TestClient(try EmbeddedConnection(configuration.transport, acceptor: server))
    try client.handshake()
    let answer = try client.unary("/t/echo", [1, 2, 3])
    let isRefused = answer.code == .resourceExhausted && server.admission.activeCalls >= 20
    if !isRefused, answer.code != .ok || answer.payloads != [[1, 2, 3]] {
      return "a neighbour got \(String(describing: answer.code))"
    }
    client.connection.close()
    return nil
  }
}
