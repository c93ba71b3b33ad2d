internal import GRPCEngineLocks
package import GRPCEngineStatistics

/// Which method a path names.
package final class MethodTable: Sendable {
  private struct State {
    var methods: [String: Method] = [:]
    var limits: [String: MethodLimits] = [:]
    /// Paths that nobody registered, by the pattern of their limits; `*` has all others.
    var fallbacks: [String: Method] = [:]
  }

  private static let everything = "*"

  private let statistics: ServerStatistics
  private let state = Locked(State())

  package init(statistics: ServerStatistics = ServerStatistics()) {
    self.statistics = statistics
  }

  /// Limits what methods may cost. It holds for those that are registered afterwards.
  ///
  /// - Parameter pattern: `/package.Service/Method`, `/package.Service/*` or `*`. Of a method's
  ///   patterns the most precise one counts, alone.
  package func setLimits(_ limits: MethodLimits, for pattern: String) {
    self.state.withLock { $0.limits[pattern] = limits }
  }

  /// Registers `handler` for `path` (`/package.Service/Method`); the last one wins, as in grpcio.
  package func register(
    _ handler: any MethodHandler,
    for path: String,
    kind: CallKind = .unaryUnary
  ) {
    let statistics = self.statistics.method(path, kind: kind.rawValue)
    self.state.withLock { state in
      state.methods[path] = Method(
        path: path,
        handler: handler,
        statistics: statistics,
        limits: handler.isLimited
          ? Self.pattern(of: path, state.limits).flatMap { state.limits[$0] } : nil,
        replacing: state.methods[path]
      )
    }
  }

  /// Sets who serves paths that nobody registered; without one they are UNIMPLEMENTED.
  package func setFallback(_ handler: (any MethodHandler)?) {
    self.state.withLock { state in
      let before = state.fallbacks
      state.fallbacks = [:]
      guard let handler else { return }
      // Its kind is not known before it is asked, call by call.
      for pattern in state.limits.keys.filter({ $0 != Self.everything }) {
        state.fallbacks[pattern] = Method(
          path: pattern,
          handler: handler,
          statistics: self.statistics.method(pattern, kind: CallKind.unaryUnary.rawValue),
          limits: state.limits[pattern],
          replacing: before[pattern]
        )
      }
      state.fallbacks[Self.everything] = Method(
        path: MethodStatistics.other,
        handler: handler,
        statistics: self.statistics.otherMethods,
        limits: state.limits[Self.everything],
        replacing: before[Self.everything]
      )
    }
  }

  package func method(for path: String) -> Method? {
    self.state.withLock { state in
      if let method = state.methods[path] { return method }
      guard !state.fallbacks.isEmpty else { return nil }
      return state.fallbacks[Self.pattern(of: path, state.fallbacks) ?? Self.everything]
    }
  }

  /// The most precise key that a path matches.
  private static func pattern<Value>(of path: String, _ keys: [String: Value]) -> String? {
    if keys.isEmpty || keys[path] != nil { return keys.isEmpty ? nil : path }
    if let slash = path.lastIndex(of: "/") {
      let service = path[...slash] + "*"
      if keys[String(service)] != nil { return String(service) }
    }
    return keys[Self.everything] == nil ? nil : Self.everything
  }
}
