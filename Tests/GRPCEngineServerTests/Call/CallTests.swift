import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import NIOHPACK
import Testing
import TransportFuzz

/// What a servicer can do with its call, one step at a time.
struct CallTests {
  /// Does nothing by itself: the test is the servicer.
  private let handler = TestHandler(startsOnFirstMessage: false) { _, _ in }

  private func run(
    configuration: ServerConfiguration = ServerConfiguration(),
    headers: HPACKHeaders = [:],
    _ body: (TestClient, Int, Call) throws -> Void
  ) throws {
    try EmbeddedServer.run(["/t/call": self.handler], configuration: configuration) { embedded in
      let stream = embedded.client.open("/t/call", headers)
      try embedded.client.barrier()
      let call = try self.handler.handled.call()
      try body(embedded.client, stream, call)
      call.handlerReturned()
    }
  }

  private func send(_ call: Call, _ message: [UInt8], mayCompress: Bool = true) throws
    -> Call.SendResult
  {
    try message.withUnsafeBytes { try call.send($0, mayCompress: mayCompress) }
  }

  private func metadata(_ key: String, _ value: String) -> Metadata {
    var metadata = Metadata()
    metadata.append(key: key, value: .ascii(value))
    return metadata
  }

  @Test("Initial metadata goes out at once and once only")
  func initialMetadata() throws {
    try self.run { client, stream, call in
      #expect(call.sendInitialMetadata(self.metadata("x", "1")))
      #expect(!call.sendInitialMetadata(self.metadata("x", "2")))
      try client.wait("the headers") { client.answers[stream]?.headers != nil }
      #expect(client.answers[stream]?.headers?[canonicalForm: "x"] == ["1"])
      #expect(!call.sendInitialMetadata(self.metadata("x", "3")))
      call.finish(.ok, metadata: self.metadata("y", "4"))
      let answer = try client.answer(on: stream)
      #expect(answer.trailers == ["grpc-status": "0", "y": "4"])
    }
  }

  @Test("A message closes the door for initial metadata")
  func initialMetadataAfterMessage() throws {
    try self.run { client, stream, call in
      #expect(try self.send(call, [1]) == .accepted)
      #expect(!call.sendInitialMetadata(self.metadata("x", "1")))
      call.finish(.ok)
      let answer = try client.answer(on: stream)
      #expect(answer.headers?.contains(name: "x") == false)
      #expect(answer.payloads == [[1]])
    }
  }

  @Test("Initial metadata without a message still comes before the trailers")
  func initialMetadataThenStatus() throws {
    try self.run { client, stream, call in
      #expect(call.sendInitialMetadata(self.metadata("x", "1")))
      call.finish(Status(code: .aborted, details: "no"), metadata: self.metadata("y", "2"))
      let answer = try client.answer(on: stream)
      #expect(answer.headers?[canonicalForm: "x"] == ["1"])
      #expect(answer.trailers == ["grpc-status": "10", "grpc-message": "no", "y": "2"])
    }
  }

  @Test("The first end is the end")
  func firstEnd() throws {
    try self.run { client, stream, call in
      #expect(call.isActive && call.termination == nil)
      call.finish(Status(code: .notFound, details: "first"))
      #expect(!call.isActive && call.termination == .answered)
      call.finish(.ok)
      call.cancel()
      #expect(try self.send(call, [1]) == .terminated)
      try [UInt8]([1]).withUnsafeBytes {
        try call.respond($0, mayCompress: true, status: .ok, metadata: nil)
      }
      let answer = try client.answer(on: stream)
      #expect(answer.code == .notFound && answer.details == "first" && answer.payloads == [])
      #expect(self.handler.handled.entries.current.terminations == [.answered])
      #expect(!call.onTermination { _ in Issue.record("called for an ended call") })
    }
  }

  @Test("Messages are read in order, then the end; in between there is nothing to read")
  func reading() throws {
    try self.run { client, stream, call in
      #expect(try self.next(call) == "pending")
      let isReadable = Monitor(0)
      call.whenReadable { isReadable.update { $0 += 1 } }
      #expect(isReadable.current == 0)
      try client.message([1], on: stream)
      #expect(isReadable.current == 1)
      try client.message([2], on: stream)
      #expect(isReadable.current == 1, "one waiter is called once")
      call.whenReadable { isReadable.update { $0 += 1 } }
      #expect(isReadable.current == 2, "there is something to read now")
      #expect(try self.next(call) == "[1]")
      #expect(try self.next(call) == "[2]")
      #expect(try self.next(call) == "pending")
      call.whenReadable { isReadable.update { $0 += 1 } }
      try client.data(ByteBuffer(), on: stream, isEnd: true)
      #expect(isReadable.current == 3)
      #expect(try self.next(call) == "end")
      #expect(try self.next(call) == "end")
    }
  }

  @Test("What came before a message that is none can still be read")
  func readingBeforeGarbage() throws {
    try self.run { client, stream, call in
      try client.message([1], on: stream)
      try client.message([2], on: stream)
      try client.data(ByteBuffer(bytes: [9, 0, 0, 0, 0]), on: stream)
      #expect(try client.answer(on: stream).code == .internalError)
      #expect(call.termination == .invalidRequest)
      #expect(try self.next(call) == "[1]")
      #expect(try self.next(call) == "[2]")
      #expect(try self.next(call) == "invalidRequest")
    }
  }

  @Test("After a reset nothing can be read, and waiters are called")
  func readingAfterReset() throws {
    try self.run { client, stream, call in
      let woken = Monitor(0)
      call.whenReadable { woken.update { $0 += 1 } }
      call.whenWritable { woken.update { $0 += 10 } }
      #expect(woken.current == 10, "there is room from the start")
      client.send { $0.reset(stream) }
      #expect(woken.current == 11)
      let next = try self.next(call)
      #expect(next == "cancelledByPeer")
      call.whenReadable { woken.update { $0 += 100 } }
      call.whenWritable { woken.update { $0 += 1000 } }
      #expect(woken.current == 1111)
    }
  }

  private func next(_ call: Call) throws -> String {
    switch try call.nextMessage() {
    case .message(let message): "\(Array(message.readableBytesView))"
    case .end: "end"
    case .pending: "pending"
    case .terminated(let termination): "\(termination)"
    }
  }

  @Test("A call is compressed as its servicer says, but for messages that it excepts")
  func encoding() throws {
    let headers: HPACKHeaders = ["grpc-accept-encoding": "gzip"]
    try self.run(headers: headers) { client, stream, call in
      let message = [UInt8](repeating: 1, count: 1000)
      call.setEncoding(.gzip)
      for mayCompress in [true, false] {
        _ = try self.send(call, message, mayCompress: mayCompress)
      }
      // Too short to gain by it.
      _ = try self.send(call, [1])
      call.setEncoding(.identity)
      _ = try self.send(call, message)
      call.finish(.ok)
      let answer = try client.answer(on: stream)
      #expect(answer.headers?.first(name: "grpc-encoding") == "gzip")
      #expect(answer.messages.map(\.isCompressed) == [true, false, false, true])
    }
  }

  @Test("An encoding that the peer does not know is not used", arguments: ["", "deflate", "br"])
  func unknownEncoding(accepted: String) throws {
    let headers: HPACKHeaders = ["grpc-accept-encoding": accepted]
    var configuration = ServerConfiguration()
    configuration.compression = .gzip
    try self.run(configuration: configuration, headers: headers) { client, stream, call in
      _ = try self.send(call, [UInt8](repeating: 1, count: 1000))
      call.finish(.ok)
      let answer = try client.answer(on: stream)
      #expect(answer.headers?.contains(name: "grpc-encoding") == false)
      #expect(answer.messages.map(\.isCompressed) == [false])
    }
  }

  @Test("A writer is told when it is ahead, and when its peer has caught up")
  func writing() throws {
    var configuration = ServerConfiguration()
    configuration.transport.http2.sendBufferSize = 1000
    try self.run(configuration: configuration) { client, stream, call in
      client.grantsWindows = false
      var sent = 0
      while try self.send(call, [UInt8](repeating: 0, count: 295)) == .accepted {
        sent += 300
        try #require(sent < 200_000)
        try client.barrier()
      }
      #expect(sent + 300 > 65_535, "the peer's window is full first")
      let isWritable = Monitor(false)
      call.whenWritable { isWritable.update { $0 = true } }
      try client.barrier()
      #expect(!isWritable.current)
      client.writer.windowUpdate(0, increment: 10_000)
      client.writer.windowUpdate(stream, increment: 10_000)
      try client.barrier()
      #expect(isWritable.current)
      call.finish(.ok)
      #expect(try client.answer(on: stream).receivedBytes == sent + 300)
    }
  }

  @Test("A handler may give its call to another, which gets the request from its beginning")
  func restart() throws {
    let second = TestHandler.echo()
    let first = TestHandler(startsOnFirstMessage: true) { call, _ in call.restart(with: second) }
    try EmbeddedServer.run(["/t/first": first]) { embedded in
      let answer = try embedded.client.unary("/t/first", [5])
      #expect(answer.payloads == [[5]])
      #expect(second.handled.entries.current.calls.count == 1)
      HandledCalls.forget([second])
    }
  }

  @Test("A call that was handed on waits for its request, or ends without it", arguments: 0..<3)
  func restartBeforeMessage(end: Int) throws {
    let second = TestHandler.echo()
    let first = TestHandler(startsOnFirstMessage: false) { call, _ in call.restart(with: second) }
    try EmbeddedServer.run(["/t/first": first]) { embedded in
      let client = embedded.client
      let stream = client.open("/t/first")
      try client.barrier()
      #expect(second.handled.entries.current.calls.isEmpty)
      switch end {
      case 0:
        try client.message([5], on: stream, isEnd: true)
        #expect(try client.answer(on: stream).payloads == [[5]])
      case 1:
        try client.data(ByteBuffer(), on: stream, isEnd: true)
        #expect(try client.answer(on: stream).code == .unimplemented)
      default:
        client.send { $0.reset(stream) }
      }
      #expect(embedded.server.admission.activeCalls == 0)
      HandledCalls.forget([second])
    }
  }

  @Test("A call that has ended is not handed on")
  func restartAfterEnd() throws {
    let second = TestHandler.echo()
    try self.run { client, stream, call in
      client.send { $0.reset(stream) }
      call.restart(with: second)
      try client.barrier()
      #expect(second.handled.entries.current.calls.isEmpty)
    }
  }

  @Test("A servicer that answers before its request has come has nothing to wait for")
  func hasty() throws {
    let handler = TestHandler.hasty()
    try EmbeddedServer.run(["/t/hasty": handler]) { embedded in
      let client = embedded.client
      let stream = client.open("/t/hasty")
      client.writer.data(FrameWriter.message([1]), on: stream)
      client.writer.data(FrameWriter.message([2]), on: stream, isEnd: true)
      let answer = try client.answer(on: stream)
      #expect(answer.code == .ok && answer.isTrailersOnly)
      #expect(handler.handled.entries.current.receivedBytes == 0)
      #expect(handler.handled.entries.current.terminations == [.answered])
    }
  }
}
