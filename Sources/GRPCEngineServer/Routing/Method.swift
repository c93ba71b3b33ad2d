package import GRPCEngineStatistics

/// A method that the server knows: who serves it, what it may cost, and its numbers.
package final class Method: Sendable {
  /// `/package.Service/Method`, or what stands for paths that nobody registered.
  package let path: String
  package let handler: any MethodHandler
  package let statistics: MethodStatistics
  /// `nil` when nobody set any.
  package let limits: MethodLimits?
  let gate: MethodGate?

  /// - Parameter predecessor: what the path named so far. Where the limits are the same its calls
  ///   count on.
  init(
    path: String,
    handler: any MethodHandler,
    statistics: MethodStatistics,
    limits: MethodLimits? = nil,
    replacing predecessor: Method? = nil
  ) {
    self.path = path
    self.handler = handler
    self.statistics = statistics
    self.limits = limits
    self.gate =
      predecessor?.limits == limits
      ? predecessor?.gate
      : limits.flatMap { limits in
        limits.concurrency.map { MethodGate(concurrency: $0, queue: limits.queue) }
      }
  }
}
