internal import GRPCEngineStatistics

/// What all calls of a server share.
final class CallEnvironment: Sendable {
  let configuration: ServerConfiguration
  let admission: Admission
  let statistics: ServerStatistics
  let idleWatch: IdleWatch
  /// Who hears of every call that has ended. Set before the server starts, and read after that.
  nonisolated(unsafe) var observer: (@Sendable (CallSummary) -> Void)?

  init(configuration: ServerConfiguration, admission: Admission, statistics: ServerStatistics) {
    self.configuration = configuration
    self.admission = admission
    self.statistics = statistics
    self.idleWatch = IdleWatch(slot: statistics.slot)
  }
}
