internal import Synchronization

/// Which handler serves which path.
package final class MethodTable: Sendable {
  private struct State {
    var handlers: [String: any MethodHandler] = [:]
    var fallback: (any MethodHandler)?
  }

  private let state = Mutex(State())

  package init() {}

  /// Registers `handler` for `path` (`/package.Service/Method`); the last one wins, as in grpcio.
  package func register(_ handler: any MethodHandler, for path: String) {
    self.state.withLock { $0.handlers[path] = handler }
  }

  /// Sets who serves paths that nobody registered; without one they are UNIMPLEMENTED.
  package func setFallback(_ handler: (any MethodHandler)?) {
    self.state.withLock { $0.fallback = handler }
  }

  package func handler(for path: String) -> (any MethodHandler)? {
    self.state.withLock { $0.handlers[path] ?? $0.fallback }
  }
}
