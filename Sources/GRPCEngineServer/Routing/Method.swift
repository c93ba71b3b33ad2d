package import GRPCEngineStatistics

/// A method that the server knows: who serves it, and its numbers.
package final class Method: Sendable {
  /// `/package.Service/Method`; that of the server's fallback is `MethodStatistics.other`.
  package let path: String
  package let handler: any MethodHandler
  package let statistics: MethodStatistics

  init(path: String, handler: any MethodHandler, statistics: MethodStatistics) {
    self.path = path
    self.handler = handler
    self.statistics = statistics
  }
}
