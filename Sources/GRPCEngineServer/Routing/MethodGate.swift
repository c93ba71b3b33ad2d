internal import GRPCEngineLocks
internal import NIOCore

/// Lets so many calls of a method run at once, and so many more wait, in the order in which they
/// came.
final class MethodGate: Sendable {
  enum Entry { case run, wait, refuse }

  private struct State {
    var running = 0
    var waiting = CircularBuffer<Call>()
  }

  private let concurrency: Int
  private let queue: Int
  private let state = Locked(State())

  init(concurrency: Int, queue: Int) {
    self.concurrency = concurrency
    self.queue = queue
  }

  /// Asks for a call to run. One that has to wait is told `gateOpened` when it may.
  func enter(_ call: Call) -> Entry {
    self.state.withLock { state in
      if state.running < self.concurrency {
        state.running += 1
        return .run
      }
      guard state.waiting.count < self.queue else { return .refuse }
      state.waiting.append(call)
      return .wait
    }
  }

  /// A call that ran does so no more. May be called from any thread.
  func leave() {
    let next = self.state.withLock { state -> Call? in
      if let next = state.waiting.popFirst() { return next }
      state.running -= 1
      return nil
    }
    next?.gateOpened()
  }

  /// Takes out a call that has ended while it waited.
  ///
  /// - Returns: false when it does not wait any more.
  func giveUp(_ call: Call) -> Bool {
    self.state.withLock { state in
      guard let index = state.waiting.firstIndex(where: { $0 === call }) else { return false }
      state.waiting.remove(at: index)
      return true
    }
  }
}
