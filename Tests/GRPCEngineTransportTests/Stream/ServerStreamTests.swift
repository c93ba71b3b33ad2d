import GRPCEngineHTTP2
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import NIOHPACK
import Testing
import TransportFuzz

/// What a stream tells its receiver, and what it does to the wire.
final class ServerStreamTests {
  private let recorder = Recorder()

  deinit { self.recorder.forget() }

  private func receiver() throws -> Recorder.Receiver {
    try #require(self.recorder.receivers.last)
  }

  @Test("Messages come in order, the end after them, and the finish last")
  func order() throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b")
    try client.message([1], on: stream)
    try client.message([], on: stream)
    try client.message([2, 3], on: stream, isEnd: true)
    _ = try client.answer(on: stream)
    #expect(
      try self.receiver().events == [
        .message([1]), .message([]), .message([2, 3]), .end, .finished,
      ]
    )
  }

  @Test("The peer's trailers end its request")
  func requestTrailers() throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b")
    try client.message([1], on: stream)
    client.writer.headers(["x": "y"], on: stream, isEnd: true)
    #expect(try client.answer(on: stream).code == .ok)
    #expect(try self.receiver().events == [.message([1]), .end, .finished])
  }

  @Test("Headers that end the stream are a request without messages")
  func noMessage() throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b", isEnd: true)
    _ = try client.answer(on: stream)
    #expect(try self.receiver().events == [.end, .finished])
  }

  @Test("A message that the stream's end cuts off is invalid", arguments: 1..<8)
  func truncated(length: Int) throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b")
    let part = FrameWriter.message([1, 2, 3]).getSlice(at: 0, length: length)
    try client.data(try #require(part), on: stream, isEnd: true)
    _ = try client.answer(on: stream)
    #expect(try self.receiver().events == [.invalid(.internalError), .finished])
  }

  @Test("A message above the limit is refused by its prefix alone, and its sender is stopped")
  func tooLarge() throws {
    var configuration = TransportConfiguration()
    configuration.maxReceiveMessageLength = 10
    let (client, connection) = try self.recorder.connect(configuration)
    let stream = client.open("/a/b")
    let prefix = FrameWriter.message([UInt8](repeating: 0, count: 11)).getSlice(at: 0, length: 5)
    // The peer never ends its request: the stream must not stay open for it.
    try client.data(try #require(prefix), on: stream)
    let answer = try client.answer(on: stream)
    #expect(answer.isTrailersOnly)
    try client.wait("a reset") { client.answers[stream]?.reset != nil }
    #expect(try self.receiver().events == [.invalid(.resourceExhausted), .finished])
    connection.registry.drain {}
    connection.advance(by: .zero)
    try client.barrier()
    connection.advance(by: ConnectionLifecycle.lastCalls)
    try client.waitForClose()
  }

  @Test("Headers that the socket has no room for count as held until they leave")
  func headersThatWait() throws {
    let size = 32_000
    let (client, connection) = try self.recorder.connect()
    _ = client.open("/a/b")
    try client.barrier()
    let before = connection.registry.memory.held
    connection.setWritable(false)
    client.writer.ping(1)  // what is read has the connection see that
    connection.write(client.writer.take())
    var headers = Recorder.headers
    headers.append("x", String(repeating: "y", count: size))
    try self.receiver().stream.sendHeaders(headers)
    #expect(connection.registry.memory.held - before >= size)
    connection.setWritable(true)
    try client.wait("headers") { client.answers[1]?.headers != nil }
    #expect(connection.registry.memory.held - before < size)
    #expect(!(try self.receiver().events.contains(.writable)), "no message has been sent")
  }

  @Test("A prefix with an unknown flag ends the call", arguments: [UInt8(2), 0x80, 0xFF])
  func badFlag(flag: UInt8) throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b")
    try client.data(ByteBuffer(bytes: [flag, 0, 0, 0, 0]), on: stream, isEnd: true)
    _ = try client.answer(on: stream)
    #expect(try self.receiver().events == [.invalid(.internalError), .finished])
  }

  @Test("A reset is told once, with its code, at every point of a call", arguments: 0..<4)
  func reset(point: Int) throws {
    self.recorder.onEnd = { _ in }
    let (client, connection) = try self.recorder.connect()
    let stream = client.open("/a/b")
    var expected: [Recorder.Event] = []
    if point >= 1 {
      try client.message([1], on: stream, isEnd: point >= 2)
      expected.append(.message([1]))
      if point >= 2 { expected.append(.end) }
    }
    try client.barrier()
    if point >= 3 {
      let server = try self.receiver().stream
      server.sendHeaders(Recorder.headers)
      server.sendMessages(FrameWriter.message([2]))
      server.connection.flush()
      expected.append(.writable)
      try client.wait("a message") { client.answers[stream]?.messages.count == 1 }
    }
    client.writer.reset(stream, code: ErrorCode.cancel)
    try client.barrier()
    expected.append(.failed(.reset(.cancel)))
    #expect(try self.receiver().events == expected)
    // What comes too late is dropped.
    let server = try self.receiver().stream
    server.sendMessages(FrameWriter.message([2]))
    server.sendEnd(messages: nil, trailers: Recorder.trailersOnly)
    server.refuse()
    server.connection.flush()
    try client.barrier()
    #expect(client.answers[stream]?.isEnded == false)
    #expect(connection.isOpen)
    #expect(try self.receiver().events == expected)
  }

  @Test("An answer that is complete before its request asks the peer to stop, once it is out")
  func earlyAnswer() throws {
    let (client, _) = try self.recorder.connect()
    client.grantsWindows = false
    let stream = client.open("/a/b")
    try client.barrier()
    let server = try self.receiver().stream
    server.sendHeaders(Recorder.headers)
    // More than the peer's window: the trailers wait, and so must the reset.
    let messages = FrameWriter.message([UInt8](repeating: 1, count: 70_000))
    server.sendEnd(messages: messages, trailers: ["grpc-status": "0"])
    server.connection.flush()
    try client.wait("a full window") { client.answers[stream]?.receivedBytes == 65_535 }
    try client.barrier()
    #expect(client.answers[stream]?.reset == nil)
    client.writer.windowUpdate(0, increment: 100_000)
    client.writer.windowUpdate(stream, increment: 100_000)
    try client.wait("a reset") { client.answers[stream]?.reset != nil }
    #expect(client.answers[stream]?.reset == ErrorCode.noError)
    #expect(client.answers[stream]?.isEnded == true)
    #expect(client.answers[stream]?.messages.count == 1)
    #expect(try self.receiver().events == [.finished])
  }

  // MARK: Windows

  @Test("A receiver that takes nothing stops its peer, and one that takes starts it again")
  func heldMessages() throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b")
    try client.barrier()
    let message = [UInt8](repeating: 1, count: 995)
    while client.room(on: stream) >= 1000 { try client.message(message, on: stream) }
    try client.barrier()
    #expect(client.answers[stream]?.granted == 0)
    #expect(try self.receiver().events.count == 65)
    let server = try self.receiver().stream
    server.consumed(65_000)
    server.connection.flush()
    try client.wait("the window") { client.answers[stream]?.granted == 65_000 }
  }

  @Test("One stream that is not read leaves the others their windows")
  func neighbours() throws {
    let (client, _) = try self.recorder.connect()
    let message = [UInt8](repeating: 1, count: 16_000)
    // Together more than the connection's window.
    for _ in 0..<40 {
      let stream = client.open("/a/b")
      for _ in 0..<4 { try client.message(message, on: stream) }
    }
    try client.barrier()
    #expect(self.recorder.receivers.allSatisfy { $0.events.count == 4 })
  }

  @Test("A message larger than the window comes through")
  func largeMessage() throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b")
    let message = (0..<1_000_000).map { UInt8(truncatingIfNeeded: $0) }
    try client.message(message, on: stream, isEnd: true)
    _ = try client.answer(on: stream)
    #expect(try self.receiver().events == [.message(message), .end, .finished])
  }

  @Test("Padding uses up no window for ever", arguments: [UInt8(63), 255])
  func padding(padding: UInt8) throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b")
    let message = [UInt8](repeating: 1, count: 3000)
    // A frame for each byte, most of it padding: several windows full.
    for byte in FrameWriter.message(message).readableBytesView {
      let length = 2 + Int(padding)
      if client.room(on: stream) < length { try client.barrier() }
      try #require(client.room(on: stream) >= length, "the window stays shut")
      client.writer.data(ByteBuffer(bytes: [byte]), on: stream, padding: padding)
      client.took(length, on: stream)
    }
    try client.data(ByteBuffer(), on: stream, isEnd: true)
    #expect(try client.answer(on: stream).code == .ok)
    #expect(try self.receiver().events == [.message(message), .end, .finished])
  }
}
