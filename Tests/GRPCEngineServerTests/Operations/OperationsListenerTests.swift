import GRPCEngineStatistics
import GRPCEngineTesting
import GRPCEngineTransport
import NIOCore
import NIOPosix
import Testing

@testable import GRPCEngineServer

/// The port of figures, and what those who ask may cost.
struct OperationsListenerTests {
  private static func run(
    _ limits: OperationsLimits = OperationsLimits(),
    _ body: (SocketAddress, OperationsListener) throws -> Void
  ) throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? group.syncShutdownGracefully() }
    let socket = try #require(
      BoundSocket.bind(.host("127.0.0.1", port: 0), reusePort: false, backlog: 64).first
    )
    let statistics = ServerStatistics()
    statistics.begin()
    let listener = try OperationsListener.start(
      socket,
      board: statistics.board,
      group: group,
      descriptors: DescriptorWatch(),
      limits: limits
    )
    try body(try SocketAddress(ipAddress: "127.0.0.1", port: socket.port), listener)
    listener.close()
  }

  private static func request(_ path: String, body: Int = 0) -> ByteBuffer {
    let text = "GET \(path) HTTP/1.1\r\nhost: a\r\ncontent-length: \(body)\r\n\r\n"
    return ByteBuffer(string: text + String(repeating: "x", count: body))
  }

  /// Reads until as many answers have come, or the end; returns how many came, and all the text.
  private static func read(
    _ connection: SocketConnection,
    answers: Int
  ) throws -> (count: Int, text: String) {
    var text = ""
    while text.components(of: "HTTP/1.1 ") < answers,
      let bytes = try connection.read("an answer")
    {
      text += String(buffer: bytes)
    }
    return (text.components(of: "HTTP/1.1 "), text)
  }

  @Test("Requests that come all at once are answered one after the other")
  func pipelined() throws {
    try Self.run { address, _ in
      let connection = try SocketConnection(to: address)
      var bytes = ByteBuffer()
      for _ in 0..<2000 { bytes.writeImmutableBuffer(Self.request("/livez")) }
      connection.write(bytes)
      let (count, text) = try Self.read(connection, answers: 2000)
      #expect(count == 2000 && text.components(of: "200 OK") == 2000)
    }
  }

  @Test("Who does not read an answer in time is closed")
  func unread() throws {
    var limits = OperationsLimits()
    limits.answer = .milliseconds(200)
    limits.connections = 2
    try Self.run(limits) { address, _ in
      let connection = try SocketConnection(to: address, receiveBuffer: 4096)
      // Far more than all the buffers on the way hold.
      var bytes = ByteBuffer()
      for _ in 0..<20_000 { bytes.writeImmutableBuffer(Self.request("/metrics")) }
      connection.write(bytes)
      // Nobody reads; another one is answered meanwhile.
      let other = try SocketConnection(to: address)
      other.write(Self.request("/livez"))
      #expect(try Self.read(other, answers: 1).count == 1)
      // There is room for a third one once the first is closed; before, reading would save it.
      let third = try SocketConnection(to: address)
      third.write(Self.request("/livez"))
      #expect(try Self.read(third, answers: 1).count == 1)
      var received = 0
      try poll("the end") {
        guard let bytes = try connection.read("the end") else { return true }
        received += bytes.readableBytes
        return false
      }
      #expect(received < 20_000 * 100)
    }
  }

  @Test("A connection without a request, or with half of one, is closed in time")
  func silent() throws {
    var limits = OperationsLimits()
    limits.firstRequest = .milliseconds(100)
    limits.nextRequest = .milliseconds(100)
    try Self.run(limits) { address, _ in
      for sent in [
        "", "GET /livez HT", "GET /livez HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nx",
      ] {
        let connection = try SocketConnection(to: address)
        connection.write(ByteBuffer(string: sent))
        while try connection.read("the end") != nil {}
      }
      let connection = try SocketConnection(to: address)
      connection.write(Self.request("/livez"))
      while try connection.read("the end after an answer") != nil {}
    }
  }

  @Test("Connections past the limit wait until another has gone")
  func connections() throws {
    var limits = OperationsLimits()
    limits.connections = 2
    try Self.run(limits) { address, _ in
      let first = try SocketConnection(to: address)
      let second = try SocketConnection(to: address)
      let third = try SocketConnection(to: address)
      for connection in [first, second] {
        connection.write(Self.request("/livez"))
        #expect(try Self.read(connection, answers: 1).count == 1)
      }
      third.write(Self.request("/livez"))
      second.close()
      #expect(try Self.read(third, answers: 1).count == 1)
    }
  }

  @Test("A body of a request may have so many bytes", arguments: [0, 4096, 4097])
  func body(length: Int) throws {
    try Self.run { address, _ in
      let connection = try SocketConnection(to: address)
      connection.write(Self.request("/livez", body: length))
      #expect(try Self.read(connection, answers: 1).count == (length > 4096 ? 0 : 1))
    }
  }

  @Test("HEAD has no body, other methods are refused")
  func methods() throws {
    try Self.run { address, _ in
      let connection = try SocketConnection(to: address)
      connection.write(ByteBuffer(string: "HEAD /livez HTTP/1.1\r\nhost: a\r\n\r\n"))
      connection.write(ByteBuffer(string: "POST /livez HTTP/1.1\r\nhost: a\r\n\r\n"))
      let (_, text) = try Self.read(connection, answers: 2)
      #expect(text.contains("content-length: 3\r\ncache-control: no-store\r\n\r\nHTTP/1.1 405"))
    }
  }

  @Test("Once the port is given back another may have it, and open connections get one answer")
  func givenBack() throws {
    try Self.run { address, listener in
      let connection = try SocketConnection(to: address)
      connection.write(Self.request("/livez"))
      #expect(try Self.read(connection, answers: 1).count == 1)
      listener.close()
      let port = try #require(address.port)
      let successor = try BoundSocket.bind(
        .host("127.0.0.1", port: port),
        reusePort: false,
        backlog: 1
      )
      connection.write(Self.request("/livez"))
      let (count, text) = try Self.read(connection, answers: 1)
      #expect(count == 1 && text.contains("connection: close"))
      while try connection.read("the end") != nil {}
      for socket in successor { socket.close() }
    }
  }
}

extension String {
  /// How often a text occurs.
  fileprivate func components(of text: String) -> Int {
    var count = 0
    var rest = self[...]
    while let range = rest.firstRange(of: text) {
      count += 1
      rest = rest[range.upperBound...]
    }
    return count
  }
}
