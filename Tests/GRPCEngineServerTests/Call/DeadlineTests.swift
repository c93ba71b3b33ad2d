import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineWire
import NIOCore
import NIOHPACK
import Testing
import TransportFuzz

/// Deadlines, on a clock that stands still unless a test moves it.
struct DeadlineTests {
  @Test("A call that is not answered in time is DEADLINE_EXCEEDED, and its handler hears of it")
  func exceeded() throws {
    let handler = TestHandler.silent()
    try EmbeddedServer.run(["/t/silent": handler]) { embedded in
      let client = embedded.client
      let stream = client.open("/t/silent", ["grpc-timeout": "5S"])
      try client.barrier()
      embedded.connection.advance(by: .milliseconds(4999))
      try client.barrier()
      #expect(client.answers[stream]?.isEnded == false)
      #expect(try handler.handled.call().isActive)
      embedded.connection.advance(by: .milliseconds(1))
      let answer = try client.answer(on: stream)
      #expect(answer.code == .deadlineExceeded && answer.isTrailersOnly)
      #expect(handler.handled.entries.current.terminations == [.deadlineExceeded])
      #expect(embedded.server.admission.activeCalls == 0)
    }
  }

  @Test("A call that waits for its request runs out of time without ever reaching its handler")
  func exceededWhileWaiting() throws {
    let handler = TestHandler.echo()
    try EmbeddedServer.run(["/t/echo": handler]) { embedded in
      let client = embedded.client
      let stream = client.open("/t/echo", ["grpc-timeout": "1S"])
      try client.data(ByteBuffer(bytes: [0, 0, 0, 0, 9, 1]), on: stream)
      embedded.connection.advance(by: .seconds(1))
      #expect(try client.answer(on: stream).code == .deadlineExceeded)
      #expect(handler.handled.entries.current.calls.isEmpty)
      #expect(embedded.server.admission.activeCalls == 0)
    }
  }

  @Test(
    "A deadline that has passed on arrival is answered without the handler",
    arguments: [true, false]
  )
  func zero(hasMessage: Bool) throws {
    let handler = TestHandler.silent()
    try EmbeddedServer.run(["/t/silent": handler]) { embedded in
      let client = embedded.client
      let stream = client.open("/t/silent", ["grpc-timeout": "0n"], isEnd: !hasMessage)
      if hasMessage { try client.message([1], on: stream) }
      #expect(try client.answer(on: stream).code == .deadlineExceeded)
      #expect(handler.handled.entries.current.calls.isEmpty)
      #expect(embedded.server.admission.activeCalls == 0)
    }
  }

  @Test(
    "An answer that its client does not read is dropped when its time is over",
    arguments: ["/t/echo", "/t/countdown"]
  )
  func unreadAnswer(path: String) throws {
    try EmbeddedServer.run(["/t/echo": TestHandler.echo(), "/t/countdown": TestHandler.countdown()])
    { embedded in
      let client = embedded.client
      client.grantsWindows = false
      client.send { $0.settings([(4, 10)]) }
      let stream = client.open(path, ["grpc-timeout": "5S"])
      let message =
        path == "/t/echo" ? [UInt8](repeating: 1, count: 100) : countdown(100, of: 100)
      try client.message(message, on: stream, isEnd: true)
      try client.barrier()
      embedded.connection.advance(by: .milliseconds(4999))
      try client.barrier()
      #expect(client.answers[stream]?.reset == nil)
      embedded.connection.advance(by: .milliseconds(1))
      try client.wait("a reset") { client.answers[stream]?.reset != nil }
      #expect(client.answers[stream]?.reset == ErrorCode.cancel)
      #expect(embedded.server.admission.activeCalls == 0)
    }
  }

  @Test("An answer in time stops the clock")
  func inTime() throws {
    try EmbeddedServer.run(["/t/echo": TestHandler.echo()]) { embedded in
      let client = embedded.client
      let answer = try client.unary("/t/echo", [1], ["grpc-timeout": "1S"])
      #expect(answer.code == .ok)
      embedded.connection.advance(by: .seconds(10))
      try client.barrier()
      #expect(embedded.connection.isOpen)
    }
  }

  @Test("Messages that went out before the deadline arrive, and the status after them")
  func halfAnswered() throws {
    let handler = TestHandler(startsOnFirstMessage: true) { call, _ in
      _ = try? [UInt8]([1, 2]).withUnsafeBytes { try call.send($0, mayCompress: false) }
      _ = call.onTermination { _ in call.handlerReturned() }
    }
    try EmbeddedServer.run(["/t/half": handler]) { embedded in
      let client = embedded.client
      let stream = client.open("/t/half", ["grpc-timeout": "1S"])
      try client.message([], on: stream, isEnd: true)
      try client.wait("the message") { client.answers[stream]?.messages.count == 1 }
      embedded.connection.advance(by: .seconds(1))
      let answer = try client.answer(on: stream)
      #expect(answer.payloads == [[1, 2]] && answer.code == .deadlineExceeded)
      #expect(!answer.isTrailersOnly)
      #expect(embedded.server.admission.activeCalls == 0)
    }
  }

  @Test("The longest timeout that the wire knows is a deadline like any other")
  func longest() throws {
    let handler = TestHandler.echo()
    try EmbeddedServer.run(["/t/echo": handler]) { embedded in
      let client = embedded.client
      let answer = try client.unary("/t/echo", [1], ["grpc-timeout": "99999999H"])
      #expect(answer.code == .ok)
      #expect(try handler.handled.call().deadline != nil)
    }
  }

  @Test("A handler that answers too late is not heard")
  func lateAnswer() throws {
    let handler = TestHandler(startsOnFirstMessage: false) { _, _ in }
    try EmbeddedServer.run(["/t/late": handler]) { embedded in
      let client = embedded.client
      let stream = client.open("/t/late", ["grpc-timeout": "1S"])
      try client.barrier()
      embedded.connection.advance(by: .seconds(1))
      #expect(try client.answer(on: stream).code == .deadlineExceeded)
      let call = try handler.handled.call()
      let result = try [UInt8]([1]).withUnsafeBytes { try call.send($0, mayCompress: false) }
      #expect(result == .terminated)
      _ = call.sendInitialMetadata(Metadata())
      call.finish(.ok)
      #expect(embedded.server.admission.activeCalls == 1, "the handler still runs")
      call.handlerReturned()
      call.handlerReturned()
      #expect(embedded.server.admission.activeCalls == 0)
      try client.barrier()
      #expect(client.answers[stream]?.messages.isEmpty == true)
    }
  }
}
