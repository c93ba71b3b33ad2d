internal import GRPCEngineLocks
internal import NIOCore

/// How many connections the listeners of a server may have accepted at a time.
///
/// Those past it wait in the kernel's backlog, and are accepted when others have gone: a client
/// sees a connection that takes its time, not one that breaks.
package final class ConnectionLimit: Sendable {
  private struct State {
    var open = 0
    var waiting: [@Sendable () -> Void] = []
  }

  private let limit: Int
  private let state = Locked(State())

  package init(_ limit: Int) { self.limit = limit }

  /// Counts a connection until it closes.
  func count(_ channel: any Channel) {
    self.state.withLock { $0.open += 1 }
    channel.closeFuture.whenComplete { _ in self.closed() }
  }

  private func closed() {
    let waiting = self.state.withLock { state in
      state.open -= 1
      defer { state.waiting = [] }
      return state.waiting
    }
    for callback in waiting { callback() }
  }

  /// - Parameter whenClosed: called once, on any thread, when a connection has closed; not called
  ///   when there is room already.
  /// - Returns: whether there is room for one more connection.
  func hasRoom(whenClosed: @escaping @Sendable () -> Void) -> Bool {
    self.state.withLock { state in
      if state.open < self.limit { return true }
      state.waiting.append(whenClosed)
      return false
    }
  }
}
