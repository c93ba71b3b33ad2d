import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineWire
import NIOCore
import Testing

/// A peer that gives up, in each of the ways and at each of the points there are.
struct CancellationTests {
  enum Way: CaseIterable { case reset, close, abort, halfCloseThenClose }

  enum Point: CaseIterable {
    case headersSent, prefixSent, messageSent, requestEnded, answerBegun
  }

  @Test(
    "A call that its peer gives up ends, and is released",
    arguments: Way.allCases,
    Point.allCases
  )
  func givenUp(way: Way, point: Point) throws {
    // Takes the request only when its peer has ended it, and answers one message then.
    let handler = TestHandler(startsOnFirstMessage: false) { call, _ in Self.wait(call) }
    try RunningServer.run(["/t/wait": handler, "/t/echo": TestHandler.echo()]) { running in
      let neighbour = try running.connect()
      let client = try running.connect()
      let stream = client.open("/t/wait")
      switch point {
      case .headersSent: break
      case .prefixSent: try client.data(ByteBuffer(bytes: [0, 0, 0, 0, 5, 1]), on: stream)
      case .messageSent: try client.message([1], on: stream)
      case .requestEnded: try client.data(ByteBuffer(), on: stream, isEnd: true)
      case .answerBegun:
        try client.message([1, 1], on: stream)
        try client.wait("an answer") { client.answers[stream]?.messages.count == 1 }
      }
      try client.barrier()
      let socket = try #require(client.connection as? SocketConnection)
      switch way {
      case .reset:
        client.writer.reset(stream)
        try client.barrier()
      case .close: socket.close()
      case .abort: try socket.abort()
      case .halfCloseThenClose:
        try socket.closeOutput()
        socket.close()
      }
      #expect(try handler.handled.terminations(1) == [.cancelledByPeer])
      try running.waitForRelease()
      #expect(try handler.handled.call().termination == .cancelledByPeer)
      #expect(try neighbour.unary("/t/echo", [7]).payloads == [[7]])
      if way == .reset { #expect(try client.unary("/t/echo", [8]).payloads == [[8]]) }
    }
  }

  /// Answers a message of two bytes, and waits for ever otherwise.
  private static func wait(_ call: Call) {
    while true {
      switch try? call.nextMessage() {
      case .message(let message):
        if message.readableBytes == 2 {
          _ = try? message.withUnsafeReadableBytes { try call.send($0, mayCompress: false) }
        }
      case .end:
        if !call.onTermination({ _ in call.handlerReturned() }) { call.handlerReturned() }
        return
      case .pending:
        return call.whenReadable { Self.wait(call) }
      case .terminated, nil:
        return call.handlerReturned()
      }
    }
  }

  @Test("A call given up before its request is whole never reaches its handler")
  func givenUpBeforeStart() throws {
    let handler = TestHandler.echo()
    try RunningServer.run(["/t/echo": handler]) { running in
      let client = try running.connect()
      for _ in 0..<50 {
        let stream = client.open("/t/echo")
        client.writer.data(ByteBuffer(bytes: [0, 0, 0]), on: stream)
        client.writer.reset(stream)
      }
      try client.barrier()
      try running.waitForRelease()
      #expect(handler.handled.entries.current.calls.isEmpty)
      #expect(running.server.admission.admittedCalls == 50)
    }
  }

  @Test("A thread that waits for a message is woken by a reset")
  func wakesReader() throws {
    let handler = ThreadedHandler(startsOnFirstMessage: false) { call in
      while try call.next() != nil {}
      call.call.finish(.ok)
    }
    try RunningServer.run(["/t/read": handler]) { running in
      let client = try running.connect()
      let stream = client.open("/t/read")
      try client.message([1], on: stream)
      try client.barrier()
      _ = try handler.handled.call()
      client.send { $0.reset(stream) }
      #expect(try handler.handled.terminations(1) == [.cancelledByPeer])
      try running.waitForRelease()
    }
  }

  @Test("A thread that waits for room is woken by its peer's end")
  func wakesWriter() throws {
    let handler = ThreadedHandler(startsOnFirstMessage: true) { call in
      let message = [UInt8](repeating: 0, count: 10_000)
      while try call.send(message) {}
    }
    try RunningServer.run(["/t/write": handler]) { running in
      let client = try running.connect()
      client.grantsWindows = false
      let stream = client.open("/t/write")
      try client.message([], on: stream, isEnd: true)
      try client.wait("a full window") { client.answers[stream]?.receivedBytes == 65_535 }
      client.connection.close()
      #expect(try handler.handled.terminations(1) == [.cancelledByPeer])
      try running.waitForRelease()
    }
  }

  @Test("A servicer that cancels its call ends it with CANCELLED")
  func cancelledByServicer() throws {
    let handler = TestHandler(startsOnFirstMessage: true) { call, _ in
      call.cancel()
      call.handlerReturned()
    }
    try RunningServer.run(["/t/cancel": handler]) { running in
      let answer = try running.connect().unary("/t/cancel")
      #expect(answer.code == .cancelled && answer.isTrailersOnly)
      #expect(try handler.handled.terminations(1) == [.cancelledByServer])
    }
  }

  @Test("Messages that were sent before a servicer cancels its call go first")
  func messagesBeforeCancellation() throws {
    let handler = TestHandler(startsOnFirstMessage: true) { call, _ in
      for byte: UInt8 in [1, 2, 3] {
        _ = try? [byte].withUnsafeBytes { try call.send($0, mayCompress: false) }
      }
      call.cancel()
      #expect((try? [4].withUnsafeBytes { try call.send($0, mayCompress: false) }) == .terminated)
      call.handlerReturned()
    }
    try RunningServer.run(["/t/cancel": handler]) { running in
      let answer = try running.connect().unary("/t/cancel")
      #expect(answer.code == .cancelled && answer.payloads == [[1], [2], [3]])
    }
  }

  @Test("A cancelled call whose peer does not read is reset")
  func cancelledBehindFullWindow() throws {
    let handler = TestHandler(startsOnFirstMessage: true) { call, _ in
      let message = [UInt8](repeating: 0, count: 100_000)
      _ = try? message.withUnsafeBytes { try call.send($0, mayCompress: false) }
      call.cancel()
      call.handlerReturned()
    }
    try RunningServer.run(["/t/cancel": handler]) { running in
      let client = try running.connect()
      client.grantsWindows = false
      let stream = client.open("/t/cancel")
      try client.message([], on: stream, isEnd: true)
      try client.wait("a reset") { client.answers[stream]?.reset != nil }
      #expect(client.answers[stream]?.receivedBytes == 65_535)
      try running.waitForRelease()
    }
  }

  @Test("A call that is given up and answered at the same time ends once", arguments: 0..<20)
  func race(round: Int) throws {
    let go = Monitor(false)
    let handler = ThreadedHandler(startsOnFirstMessage: true) { call in
      try go.wait("the start") { $0 }
      try [UInt8]([1]).withUnsafeBytes {
        try call.call.respond($0, mayCompress: false, status: .ok, metadata: nil)
      }
    }
    try RunningServer.run(["/t/race": handler]) { running in
      let client = try running.connect()
      let stream = client.open("/t/race")
      try client.message([], on: stream, isEnd: true)
      _ = try handler.handled.call()
      go.update { $0 = true }
      client.writer.reset(stream)
      try client.barrier()
      let terminations = try handler.handled.terminations(1)
      #expect(terminations == [.answered] || terminations == [.cancelledByPeer])
      try running.waitForRelease()
    }
  }
}
