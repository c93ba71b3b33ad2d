package import GRPCEngineStatistics
internal import Synchronization

/// Which method a path names.
package final class MethodTable: Sendable {
  private struct State {
    var methods: [String: Method] = [:]
    var fallback: Method?
  }

  private let statistics: ServerStatistics
  private let state = Mutex(State())

  package init(statistics: ServerStatistics = ServerStatistics()) {
    self.statistics = statistics
  }

  /// Registers `handler` for `path` (`/package.Service/Method`); the last one wins, as in grpcio.
  package func register(
    _ handler: any MethodHandler,
    for path: String,
    kind: CallKind = .unaryUnary
  ) {
    let statistics = self.statistics.method(path, kind: kind.rawValue)
    let method = Method(path: path, handler: handler, statistics: statistics)
    self.state.withLock { $0.methods[path] = method }
  }

  /// Sets who serves paths that nobody registered; without one they are UNIMPLEMENTED.
  package func setFallback(_ handler: (any MethodHandler)?) {
    let method = handler.map {
      Method(path: MethodStatistics.other, handler: $0, statistics: self.statistics.otherMethods)
    }
    self.state.withLock { $0.fallback = method }
  }

  package func method(for path: String) -> Method? {
    self.state.withLock { $0.methods[path] ?? $0.fallback }
  }
}
