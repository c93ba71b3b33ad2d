import CGRPCEngineSockets
import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import Glibc
import NIOCore
import Testing

private struct HandoverFailed: Error {}

/// The process that accepts, in this one.
private final class Acceptor {
  private let listening: BoundSocket
  private var socket: CInt
  private let released: CInt
  /// What the server gets.
  private let intake: CInt
  private let counter: CInt

  init() throws {
    self.listening = try #require(
      BoundSocket.bind(.host("127.0.0.1", port: 0), reusePort: false, backlog: 8).first
    )
    var pair: [CInt] = [-1, -1]
    try #require(socketpair(AF_UNIX, CInt(SOCK_SEQPACKET.rawValue), 0, &pair) == 0)
    self.socket = pair[0]
    self.intake = pair[1]
    // It counts as an eventfd does, which Swift's Glibc leaves out: eight bytes for each.
    var ends: [CInt] = [-1, -1]
    try #require(pipe(&ends) == 0)
    self.released = ends[0]
    self.counter = ends[1]
    _ = fcntl(self.released, F_SETFL, O_NONBLOCK)
  }

  func source(credentials: ServerCredentials? = nil) -> ConnectionIntake.Source {
    ConnectionIntake.Source(
      socket: self.intake,
      released: self.counter,
      credentials: credentials
    )
  }

  deinit {
    self.listening.close()
    close(self.socket)
    close(self.released)
  }

  /// A client's connection, and the server's end of it.
  func connect() throws -> (client: TestClient, accepted: CInt) {
    let address = try SocketAddress(ipAddress: "127.0.0.1", port: self.listening.port)
    let connection = try SocketConnection(to: address)
    let accepted = accept(self.listening.descriptor, nil, nil)
    try #require(accepted >= 0)
    return (TestClient(connection), accepted)
  }

  func handOver(_ accepted: CInt) throws {
    guard grpc_engine_send_descriptor(self.socket, accepted) == 1 else { throw HandoverFailed() }
    close(accepted)
  }

  func handOverNew() throws -> TestClient {
    let (client, accepted) = try self.connect()
    try self.handOver(accepted)
    return client
  }

  /// A message without a descriptor.
  func sendNothing() throws {
    var byte: UInt8 = 0
    try #require(send(self.socket, &byte, 1, 0) == 1)
  }

  /// Says that no more will come.
  func end() { shutdown(self.socket, CInt(SHUT_WR)) }

  /// How many connections have gone since the last time.
  func takeReleased() -> Int {
    var ones = [UInt64](repeating: 0, count: 16)
    let size = read(self.released, &ones, 16 * MemoryLayout<UInt64>.size)
    return max(0, size) / MemoryLayout<UInt64>.size
  }
}

struct HandoverTests {
  private func run(
    _ methods: [String: any MethodHandler],
    credentials: ServerCredentials? = nil,
    _ body: (Server, Acceptor) throws -> Void
  ) throws {
    let acceptor = try Acceptor()
    let server = Server(configuration: ServerConfiguration())
    for (path, handler) in methods { server.methods.register(handler, for: path) }
    defer { HandledCalls.forget(Array(methods.values)) }
    try server.adoptConnections(from: acceptor.source(credentials: credentials))
    try server.start()
    let result = Result { try body(server, acceptor) }
    let hasStopped = Monitor(false)
    server.drain { hasStopped.update { $0 = true } }
    server.cancelAllCalls()
    try result.get()
    try hasStopped.wait("the server's end") { $0 }
  }

  /// Sends what begins a connection, without waiting for the answer.
  private static func greet(_ client: TestClient) {
    client.send { writer in
      writer.preface()
      writer.settings([])
    }
  }

  @Test("A connection that was handed over is served, and its peer named")
  func serve() throws {
    let handler = TestHandler.echo()
    try self.run(["/t/echo": handler]) { server, acceptor in
      let clients = try (0..<3).map { _ in try acceptor.handOverNew() }
      for client in clients {
        try client.handshake()
        #expect(try client.unary("/t/echo", [1, 2]).payloads == [[1, 2]])
      }
      #expect(server.connectionCount == 3)
      #expect(try handler.handled.call().peer.description.hasPrefix("ipv4:127.0.0.1:"))
    }
  }

  @Test("What was sent before the server started waits for it")
  func early() throws {
    let acceptor = try Acceptor()
    let client = try acceptor.handOverNew()
    let server = Server(configuration: ServerConfiguration())
    let handler = TestHandler.echo()
    defer { HandledCalls.forget([handler]) }
    server.methods.register(handler, for: "/t/echo")
    try server.adoptConnections(from: acceptor.source())
    try server.start()
    #expect(throws: Server.WrongState.self) {
      try server.adoptConnections(from: acceptor.source())
    }
    try client.handshake()
    #expect(try client.unary("/t/echo", [7]).payloads == [[7]])
    let hasStopped = Monitor(false)
    server.drain { hasStopped.update { $0 = true } }
    acceptor.end()
    try hasStopped.wait("the server's end") { $0 }
  }

  @Test("A server that never started closes what connections would have come from")
  func unstarted() throws {
    let acceptor = try Acceptor()
    let server = Server(configuration: ServerConfiguration())
    try server.adoptConnections(from: acceptor.source())
    server.drain {}
    let (_, accepted) = try acceptor.connect()
    #expect(throws: (any Error).self) { try acceptor.handOver(accepted) }
    close(accepted)
  }

  @Test("Each connection that has gone is counted, and so is a message without one")
  func released() throws {
    try self.run(["/t/echo": TestHandler.echo()]) { server, acceptor in
      let clients = try (0..<3).map { _ in try acceptor.handOverNew() }
      for client in clients { try client.handshake() }
      #expect(acceptor.takeReleased() == 0)
      clients[0].connection.close()
      clients[1].connection.close()
      try acceptor.sendNothing()
      var count = 0
      try poll("three releases") {
        count += acceptor.takeReleased()
        return count == 3
      }
      #expect(try clients[2].unary("/t/echo", [1]).payloads == [[1]], "the third goes on")
    }
  }

  @Test("What no event loop can watch is counted as gone, and costs nobody else")
  func unwatchable() throws {
    try self.run(["/t/echo": TestHandler.echo()]) { _, acceptor in
      // epoll_ctl(2) refuses a file with EPERM.
      let file = open("/dev/null", O_RDONLY)
      try #require(file >= 0)
      try acceptor.handOver(file)
      try poll("its release") { acceptor.takeReleased() == 1 }
      let client = try acceptor.handOverNew()
      try client.handshake()
      #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
    }
  }

  @Test("A connection that comes during the drain is greeted, served, and sent away")
  func drain() throws {
    let handler = TestHandler.echo()
    try self.run(["/t/echo": handler]) { server, acceptor in
      let (client, accepted) = try acceptor.connect()
      // The client knows of nothing, and has sent its first call already.
      Self.greet(client)
      let stream = client.open("/t/echo")
      try client.message([4, 2], on: stream, isEnd: true)
      let hasStopped = Monitor(false)
      server.drain { hasStopped.update { $0 = true } }
      try acceptor.handOver(accepted)
      acceptor.end()
      #expect(try client.answer(on: stream).payloads == [[4, 2]])
      try client.wait("the second GOAWAY") { client.goAways.count == 2 }
      #expect(client.goAways.map(\.last) == [Int(Int32.max), stream])
      try client.waitForClose()
      try hasStopped.wait("the server's end") { $0 }
      try poll("the release") { acceptor.takeReleased() == 1 }
    }
  }

  @Test("A drain lasts until no more connections can come")
  func drainWaits() throws {
    try self.run(["/t/echo": TestHandler.echo()]) { server, acceptor in
      let client = try acceptor.handOverNew()
      try client.handshake()
      let hasStopped = Monitor(false)
      server.drain { hasStopped.update { $0 = true } }
      try client.waitForClose()
      try poll("the connection's end") { server.connectionCount == 0 }
      #expect(!hasStopped.current)
      let late = try acceptor.handOverNew()
      try late.handshake()
      try late.waitForClose()
      #expect(!hasStopped.current)
      acceptor.end()
      try hasStopped.wait("the server's end") { $0 }
    }
  }

  @Test("A peer that has connected and not greeted when the drain begins is served")
  func drainBeforeGreeting() throws {
    try self.run(["/t/echo": TestHandler.echo()]) { server, acceptor in
      let client = try acceptor.handOverNew()
      try poll("the connection") { server.connectionCount == 1 }
      let hasStopped = Monitor(false)
      server.drain { hasStopped.update { $0 = true } }
      acceptor.end()
      Self.greet(client)
      let stream = client.open("/t/echo")
      try client.message([1], on: stream, isEnd: true)
      #expect(try client.answer(on: stream).payloads == [[1]])
      try client.waitForClose()
      try hasStopped.wait("the server's end") { $0 }
    }
  }

  @Test("Cancelling takes no more connections in, though nobody has ended it")
  func cancel() throws {
    try self.run(["/t/silent": TestHandler.silent()]) { server, acceptor in
      let client = try acceptor.handOverNew()
      try client.handshake()
      let hasStopped = Monitor(false)
      server.drain { hasStopped.update { $0 = true } }
      server.cancelAllCalls()
      try client.waitForClose()
      try hasStopped.wait("the server's end") { $0 }
    }
  }
}
