package import GRPCEngineServer
internal import GRPCEngineTransport
package import GRPCEngineWire
internal import NIOCore

/// A method in plain Swift.
package final class TestHandler: WatchedHandler {
  package let startsOnFirstMessage: Bool
  package let handled = HandledCalls()
  private let body: @Sendable (Call, HandledCalls) -> Void

  /// - Parameter body: runs on the call's event loop and must not block.
  package init(
    startsOnFirstMessage: Bool,
    _ body: @escaping @Sendable (Call, HandledCalls) -> Void
  ) {
    self.startsOnFirstMessage = startsOnFirstMessage
    self.body = body
  }

  package func start(_ call: Call) {
    self.handled.started(call)
    self.body(call, self.handled)
  }
}

extension TestHandler {
  /// Unary: answers with its request.
  package static func echo() -> TestHandler {
    TestHandler(startsOnFirstMessage: true) { call, _ in call.answerWithRequest() }
  }

  /// Unary: answers with its request, the metadata of the request as initial and as trailing
  /// metadata.
  package static func metadataEcho() -> TestHandler {
    TestHandler(startsOnFirstMessage: true) { call, _ in
      let metadata = Metadata(received: call.head.headers)
      _ = call.sendInitialMetadata(metadata)
      call.answerWithRequest(metadata: metadata)
    }
  }

  /// Unary: ends the call with a status and no message.
  package static func status(_ status: Status) -> TestHandler {
    TestHandler(startsOnFirstMessage: true) { call, _ in call.finish(status, isLast: true) }
  }

  /// Takes calls and never answers; what it was sent stays unread.
  package static func silent(startsOnFirstMessage: Bool = false) -> TestHandler {
    TestHandler(startsOnFirstMessage: startsOnFirstMessage) { call, _ in
      if !call.onTermination({ _ in call.handlerReturned() }) { call.handlerReturned() }
    }
  }

  /// Server stream: the request says how many messages (4 bytes) of which length (4 bytes). Keeps
  /// to the limits of a slow reader.
  package static func countdown() -> TestHandler {
    TestHandler(startsOnFirstMessage: true) { call, handled in
      guard case .message(var request)? = try? call.nextMessage(),
        let (count, length) = request.readMultipleIntegers(as: (UInt32, UInt32).self)
      else {
        return call.finish(Status(code: .invalidArgument), isLast: true)
      }
      // A peer chooses both numbers, and so does a fuzzer.
      let message = [UInt8](repeating: 7, count: min(Int(length), 1 << 20))
      call.countDown(Int(min(count, 1 << 20)), message, handled)
    }
  }

  /// Client stream: answers with the sum of all bytes, 8 bytes.
  package static func sum() -> TestHandler {
    TestHandler(startsOnFirstMessage: false) { call, handled in call.addUp(0, handled) }
  }

  /// Bidirectional: answers each message with itself, as it comes.
  package static func conversation() -> TestHandler {
    TestHandler(startsOnFirstMessage: false) { call, handled in call.converse(handled) }
  }

  /// Client stream: ends the answer at once, and tries to read all the same.
  package static func hasty() -> TestHandler {
    TestHandler(startsOnFirstMessage: false) { call, handled in
      call.finish(.ok)
      call.addUp(0, handled)
    }
  }
}

// Every function here is called again by the call that it waits for, on whichever thread that is.
extension Call {
  fileprivate func answerWithRequest(metadata: Metadata? = nil) {
    do {
      guard case .message(let request) = try self.nextMessage() else {
        return self.finish(Status(code: .internalError, details: "no request"), isLast: true)
      }
      try request.withUnsafeReadableBytes { bytes in
        try self.respond(bytes, mayCompress: true, status: .ok, metadata: metadata)
      }
    } catch {
      let status = (error as? MessageCodecError)?.status ?? Status(code: .unknown)
      self.finish(status, isLast: true)
    }
  }

  fileprivate func countDown(_ count: Int, _ message: [UInt8], _ handled: HandledCalls) {
    var remaining = count
    while remaining > 0 {
      remaining -= 1
      switch try? message.withUnsafeBytes({ try self.send($0, mayCompress: true) }) {
      case .accepted:
        handled.sent(message.count)
      case .full:
        handled.sent(message.count)
        let rest = remaining
        return self.whenWritable { self.countDown(rest, message, handled) }
      case .terminated, nil:
        return self.handlerReturned()
      }
    }
    self.finish(.ok, isLast: true)
  }

  fileprivate func addUp(_ soFar: UInt64, _ handled: HandledCalls) {
    var sum = soFar
    while true {
      do {
        switch try self.nextMessage() {
        case .message(let message):
          handled.received(message.readableBytes)
          // A loop over raw bytes: without optimisation, a view's iterator takes seconds for a MiB.
          sum += message.withUnsafeReadableBytes { bytes in
            var sum: UInt64 = 0
            for index in 0..<bytes.count { sum += UInt64(bytes[index]) }
            return sum
          }
        case .end:
          let answer = withUnsafeBytes(of: sum.bigEndian) { Array($0) }
          return try answer.withUnsafeBytes {
            try self.respond($0, mayCompress: true, status: .ok, metadata: nil)
          }
        case .pending:
          let soFar = sum
          return self.whenReadable { self.addUp(soFar, handled) }
        case .terminated:
          return self.handlerReturned()
        }
      } catch {
        let status = (error as? MessageCodecError)?.status ?? Status(code: .unknown)
        return self.finish(status, isLast: true)
      }
    }
  }

  fileprivate func converse(_ handled: HandledCalls) {
    while true {
      do {
        switch try self.nextMessage() {
        case .message(let message):
          handled.received(message.readableBytes)
          let result = try message.withUnsafeReadableBytes { try self.send($0, mayCompress: true) }
          handled.sent(message.readableBytes)
          if result == .full { return self.whenWritable { self.converse(handled) } }
        case .end:
          return self.finish(.ok, isLast: true)
        case .pending:
          return self.whenReadable { self.converse(handled) }
        case .terminated:
          return self.handlerReturned()
        }
      } catch {
        let status = (error as? MessageCodecError)?.status ?? Status(code: .unknown)
        return self.finish(status, isLast: true)
      }
    }
  }
}
