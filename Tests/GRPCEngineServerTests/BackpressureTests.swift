import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import Testing
import TransportFuzz

/// What a server holds for peers that do not keep up: counted in bytes of messages, since the
/// memory of a process has other causes too.
struct BackpressureTests {
  private static let sendBuffer = 4096
  private static let message = 1000

  private static var configuration: ServerConfiguration {
    var configuration = ServerConfiguration()
    configuration.transport.http2.sendBufferSize = Self.sendBuffer
    return configuration
  }

  @Test("A thousand streams to a peer that does not read hold a buffer each and no more")
  func slowReaders() throws {
    let handler = TestHandler.countdown()
    try RunningServer.run(
      ["/t/countdown": handler, "/t/echo": TestHandler.echo()],
      configuration: Self.configuration
    ) { running in
      let client = try running.connect()
      client.grantsWindows = false
      let request = FrameWriter.message(countdown(100_000, of: UInt32(Self.message)))
      for _ in 0..<1000 {
        let stream = client.open("/t/countdown")
        client.writer.data(request, on: stream, isEnd: true)
      }
      try client.barrier()
      // The connection's window is all that may leave the server.
      try client.wait("a full window") { self.received(client) == 65_535 }
      try client.barrier()
      let entries = handler.handled.entries.current
      #expect(entries.calls.count == 1000)
      let held = entries.sentBytes - 65_535
      #expect(held <= 1000 * (Self.sendBuffer + Self.message + 5))
      #expect(held >= 1000 * Self.sendBuffer / 2, "every stream has begun")
      // Nobody else waits for them.
      #expect(try running.connect().unary("/t/echo", [1]).payloads == [[1]])
      // And they go on by what their peer takes: more than they held.
      client.writer.windowUpdate(0, increment: 6_000_000)
      try client.wait("more") { self.received(client) == 6_065_535 }
      try client.barrier()
      let later = handler.handled.entries.current.sentBytes - 6_065_535
      #expect(later > 0 && later <= 1000 * (Self.sendBuffer + Self.message + 5))
    }
  }

  @Test("Answers to many calls of a peer that does not read yet are kept for it, every one")
  func manyAnswers() throws {
    try RunningServer.run(["/t/echo": TestHandler.echo()]) { running in
      let client = try running.connect(receiveBuffer: 4096)
      // Their messages fit the connection's first window; their headers do not fit the socket.
      let count = 800
      let streams = (0..<count).map { _ in
        let stream = client.open("/t/echo")
        client.writer.data(FrameWriter.message([]), on: stream, isEnd: true)
        return stream
      }
      client.flush()
      try poll("every answer") {
        running.server.admission.admittedCalls == count && running.server.admission.activeCalls == 0
      }
      try client.barrier()
      #expect(streams.allSatisfy { client.answers[$0]?.code == .ok })
    }
  }

  private func received(_ client: TestClient) -> Int {
    client.answers.values.reduce(0) { $0 + $1.receivedBytes }
  }

  @Test("A thousand requests into handlers that do not read hold a window each and no more")
  func slowServicers() throws {
    let handler = TestHandler.silent()
    var configuration = Self.configuration
    configuration.transport.http2.streamWindowSize = 4096
    try RunningServer.run(
      ["/t/silent": handler, "/t/echo": TestHandler.echo()],
      configuration: configuration
    ) { running in
      let client = try running.connect()
      #expect(client.room(on: 1) == 4096)
      let streams = (0..<1000).map { _ in client.open("/t/silent") }
      for stream in streams {
        for _ in 0..<4 { try client.message([UInt8](repeating: 0, count: 1000), on: stream) }
      }
      try client.barrier()
      for stream in streams {
        #expect(client.room(on: stream) == 4096 - 4 * 1005)
        #expect(client.answers[stream]?.granted == 0)
      }
      #expect(try running.connect().unary("/t/echo", [1]).payloads == [[1]])
      // The peer's own other calls are not stopped by them either.
      #expect(try client.unary("/t/echo", [2]).payloads == [[2]])
    }
  }

  @Test("A socket that is not read at all stops its stream, and its neighbours go on")
  func deafSocket() throws {
    let handler = TestHandler.countdown()
    try RunningServer.run(
      ["/t/countdown": handler, "/t/echo": TestHandler.echo()],
      configuration: Self.configuration
    ) { running in
      // Windows as wide as can be: only the socket is left to stop the server.
      let client = try running.connect(
        settings: [(4, UInt32(Int32.max))],
        receiveBuffer: 16 * 1024
      )
      client.writer.windowUpdate(0, increment: Int(Int32.max) - 65_535)
      let stream = client.open("/t/countdown")
      client.writer.data(
        FrameWriter.message(countdown(1_000_000, of: 1000)),
        on: stream,
        isEnd: true
      )
      client.flush()
      _ = try handler.handled.call()
      let neighbour = try running.connect()
      // Turns of the loop in which nothing more is sent: the kernel's buffers are full.
      var sent = -1
      try poll("the stream to stop") {
        for _ in 0..<20 { _ = try neighbour.unary("/t/echo", [1]) }
        defer { sent = handler.handled.entries.current.sentBytes }
        return sent == handler.handled.entries.current.sentBytes
      }
      #expect(sent < 32 << 20, "far less than the answer's 1 GB")
      try client.wait("more") { client.answers[stream]?.receivedBytes ?? 0 > sent }
    }
  }

  @Test("A conversation with a peer that only talks stops listening to it")
  func talkingPeer() throws {
    let handler = TestHandler.conversation()
    try EmbeddedServer.run(["/t/talk": handler], configuration: Self.configuration) { embedded in
      try self.talk(embedded.client, handler)
    }
  }

  private func talk(_ client: TestClient, _ handler: TestHandler) throws {
    client.grantsWindows = false
    let stream = client.open("/t/talk")
    let message = FrameWriter.message([UInt8](repeating: 3, count: 995))
    // Until the server grants nothing more: then its answers fill both its buffer and our window.
    for _ in 0..<10_000 {
      while client.room(on: stream) >= 1000 { try client.data(message, on: stream) }
      try client.barrier()
      if client.room(on: stream) < 1000 { break }
    }
    #expect(client.room(on: stream) < 1000)
    let entries = handler.handled.entries.current
    #expect(entries.sentBytes <= 65_535 + Self.sendBuffer + 1000)
    client.writer.windowUpdate(0, increment: 10_000_000)
    client.writer.windowUpdate(stream, increment: 10_000_000)
    try client.wait("the window") { client.room(on: stream) > 32_000 }
  }

  @Test("Threads that write and read at their own pace lose nothing")
  func threads() throws {
    let handler = ThreadedHandler(startsOnFirstMessage: false) { call in
      while let message = try call.next() {
        guard try call.send(Array(message.readableBytesView)) else { return }
      }
      call.call.finish(.ok)
    }
    var configuration = Self.configuration
    configuration.transport.http2.streamWindowSize = 2048
    configuration.transport.http2.sendBufferSize = 1024
    configuration.eventLoopThreads = 2
    try RunningServer.run(["/t/talk": handler], configuration: configuration) { running in
      let clients = try (0..<3).map { _ in try running.connect() }
      let sent = (0..<300).map { [UInt8](repeating: UInt8($0 & 0xFF), count: $0) }
      var streams: [(TestClient, Int)] = []
      for client in clients {
        for _ in 0..<2 { streams.append((client, client.open("/t/talk"))) }
      }
      for message in sent {
        for (client, stream) in streams { try client.message(message, on: stream) }
      }
      for (client, stream) in streams { try client.data(ByteBuffer(), on: stream, isEnd: true) }
      for (client, stream) in streams {
        let answer = try client.answer(on: stream)
        #expect(answer.payloads == sent && answer.code == .ok)
      }
    }
  }
}
