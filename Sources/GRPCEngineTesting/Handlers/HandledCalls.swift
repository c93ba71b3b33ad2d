package import GRPCEngineServer

/// What happened to the calls of one handler.
package final class HandledCalls: Sendable {
  package struct Entries: Sendable {
    /// Calls that the handler was given.
    package var calls: [Call] = []
    /// How they ended, in the order in which they did.
    package var terminations: [Call.Termination] = []
    /// What a handler took and sent, so that a test can weigh what lies in between.
    package var receivedBytes = 0
    package var sentBytes = 0
  }

  package let entries = Monitor(Entries())

  package init() {}

  func started(_ call: Call) {
    self.entries.update { $0.calls.append(call) }
    let isRunning = call.onTermination { termination in
      self.entries.update { $0.terminations.append(termination) }
    }
    if !isRunning, let termination = call.termination {
      self.entries.update { $0.terminations.append(termination) }
    }
  }

  func received(_ length: Int) { self.entries.update { $0.receivedBytes += length } }

  func sent(_ length: Int) { self.entries.update { $0.sentBytes += length } }

  /// Lets go of the calls in the logs of `handlers`: a call leads to its server and that to its
  /// handlers, so that none of them would ever be freed.
  package static func forget(_ handlers: [any MethodHandler]) {
    for handler in handlers {
      (handler as? any WatchedHandler)?.handled.entries.update { $0.calls = [] }
    }
  }

  /// Waits for the first call.
  package func call() throws -> Call {
    try self.entries.wait("a call to start") { $0.calls.first }
  }

  /// Waits until `count` calls have ended.
  package func terminations(_ count: Int) throws -> [Call.Termination] {
    try self.entries.wait("\(count) calls to end") { entries in
      entries.terminations.count >= count ? entries.terminations : nil
    }
  }
}

/// A handler whose calls a test can follow.
package protocol WatchedHandler: MethodHandler {
  var handled: HandledCalls { get }
}
