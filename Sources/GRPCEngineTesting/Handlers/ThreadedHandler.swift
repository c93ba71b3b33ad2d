package import GRPCEngineServer
internal import GRPCEngineWire
package import NIOCore
internal import NIOPosix

/// A method that runs on a thread of its own and may block there, as a Python servicer does.
package final class ThreadedHandler: WatchedHandler {
  package let startsOnFirstMessage: Bool
  package let handled = HandledCalls()
  private let body: @Sendable (BlockingCall) throws -> Void

  /// As many calls as may block at a time, over all tests.
  private static let threads: NIOThreadPool = {
    let pool = NIOThreadPool(numberOfThreads: 16)
    pool.start()
    return pool
  }()

  /// - Parameter body: ends the call; a codec's error that it throws does so too.
  package init(
    startsOnFirstMessage: Bool,
    _ body: @escaping @Sendable (BlockingCall) throws -> Void
  ) {
    self.startsOnFirstMessage = startsOnFirstMessage
    self.body = body
  }

  package func start(_ call: Call) {
    self.handled.started(call)
    Self.threads.submit { _ in
      do {
        try self.body(BlockingCall(call: call))
      } catch {
        call.finish((error as? MessageCodecError)?.status ?? Status(code: .unknown))
      }
      call.handlerReturned()
    }
  }
}

/// A call as a thread sees it that may wait.
package struct BlockingCall: Sendable {
  package let call: Call

  /// - Returns: the next message; `nil` at their end, and when the call has ended.
  package func next() throws -> ByteBuffer? {
    while true {
      switch try self.call.nextMessage() {
      case .message(let message): return message
      case .end, .terminated: return nil
      case .pending:
        try Self.wait { wake in self.call.whenReadable(wake) }
      }
    }
  }

  /// Sends a message and waits until another is welcome.
  ///
  /// - Returns: whether the call still runs.
  package func send(_ message: [UInt8]) throws -> Bool {
    switch try message.withUnsafeBytes({ try self.call.send($0, mayCompress: true) }) {
    case .accepted: return true
    case .terminated: return false
    case .full:
      try Self.wait { wake in self.call.whenWritable(wake) }
      return self.call.isActive
    }
  }

  private static func wait(_ register: (@escaping @Sendable () -> Void) -> Void) throws {
    let isAwake = Monitor(false)
    register { isAwake.update { $0 = true } }
    try isAwake.wait("a call to go on") { $0 }
  }
}
