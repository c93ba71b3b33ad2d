internal import GRPCEngineLocks
package import GRPCEngineStatistics
internal import GRPCEngineWire

/// Which method a path names.
package final class MethodTable: Sendable {
  private struct State {
    var methods: [ExactString: Method] = [:]
    var limits: [ExactString: MethodLimits] = [:]
    /// Paths that nobody registered, by the pattern of their limits; `*` has all others.
    var fallbacks: [ExactString: Method] = [:]
  }

  private static let everything: ExactString = "*"

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
    self.state.withLock { $0.limits[ExactString(pattern)] = limits }
  }

  /// Registers `handler` for `path` (`/package.Service/Method`); the last one wins, as in grpcio.
  ///
  /// - Parameter ownLimits: what a handler that is not limited by the settings has for its limits.
  package func register(
    _ handler: any MethodHandler,
    for path: String,
    kind: CallKind = .unaryUnary,
    ownLimits: MethodLimits? = nil
  ) {
    let statistics = self.statistics.method(path, kind: kind.rawValue)
    let key = ExactString(path)
    self.state.withLock { state in
      state.methods[key] = Method(
        path: path,
        handler: handler,
        statistics: statistics,
        limits: handler.isLimited
          ? Self.pattern(of: key, state.limits).flatMap { state.limits[$0] } : ownLimits,
        replacing: state.methods[key]
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
          path: pattern.string,
          handler: handler,
          statistics: self.statistics.method(pattern.string, kind: CallKind.unaryUnary.rawValue),
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
    let key = ExactString(path)
    return self.state.withLock { state in
      if let method = state.methods[key] { return method }
      guard !state.fallbacks.isEmpty else { return nil }
      return state.fallbacks[Self.pattern(of: key, state.fallbacks) ?? Self.everything]
    }
  }

  /// The most precise key that a path matches.
  private static func pattern<Value>(
    of path: ExactString,
    _ keys: [ExactString: Value]
  ) -> ExactString? {
    if keys.isEmpty || keys[path] != nil { return keys.isEmpty ? nil : path }
    // By its bytes: with a combining mark behind it a slash is another character.
    let bytes = path.string.utf8
    if let slash = bytes.lastIndex(of: UInt8(ascii: "/")) {
      let service = ExactString(String(Substring(bytes[...slash])) + "*")
      if keys[service] != nil { return service }
    }
    return keys[Self.everything] == nil ? nil : Self.everything
  }
}
