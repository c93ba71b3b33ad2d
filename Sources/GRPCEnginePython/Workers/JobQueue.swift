internal import GRPCEngineServer
internal import NIOCore

/// Calls that wait for a worker, in the order in which they came.
///
/// Streams may be held by their peers, each with its worker; so only so many of them run at a time,
/// and those beyond wait, while calls with one request and one response go past them. However many
/// peers stall, some worker is left for those.
struct JobQueue {
  private var brief = CircularBuffer<PythonJob>()
  private var streams = CircularBuffer<PythonJob>()
  private var runningStreams = 0
  private let maxRunningStreams: Int

  init(maxRunningStreams: Int) { self.maxRunningStreams = maxRunningStreams }

  /// Calls that wait, those that may not run yet among them.
  var count: Int { self.brief.count + self.streams.count }

  /// Whether there is no call that may run now.
  var isEmpty: Bool { self.brief.isEmpty && !self.mayRunStream }

  /// Since when the oldest call waits, of those that may run now: what stalled peers keep from
  /// running tells nothing of the workers.
  var oldest: NIODeadline? {
    let stream = self.mayRunStream ? self.streams.first?.queued : nil
    guard let brief = self.brief.first?.queued else { return stream }
    return stream.map { min($0, brief) } ?? brief
  }

  private var mayRunStream: Bool {
    !self.streams.isEmpty && self.runningStreams < self.maxRunningStreams
  }

  mutating func append(_ job: PythonJob) {
    if job.isStream { self.streams.append(job) } else { self.brief.append(job) }
  }

  /// Takes the call that has waited longest, of those that may run.
  mutating func popFirst() -> PythonJob? {
    guard self.mayRunStream, let stream = self.streams.first else { return self.brief.popFirst() }
    if let brief = self.brief.first, brief.call.accepted < stream.call.accepted {
      return self.brief.popFirst()
    }
    self.runningStreams += 1
    return self.streams.popFirst()
  }

  /// A call that `popFirst` gave runs no more.
  mutating func finished(_ job: PythonJob) {
    if job.isStream { self.runningStreams -= 1 }
  }
}
