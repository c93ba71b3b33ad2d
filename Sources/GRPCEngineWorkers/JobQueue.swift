public import NIOCore

/// Calls that wait for a worker, in the order in which they came.
///
/// Streams may be held by their peers, each with its worker; so only so many of them run at a time,
/// and those beyond wait, while calls with one request and one response go past them. However many
/// peers stall, some worker is left for those.
public struct JobQueue<Job: QueuedCall>: Sendable {
  private var brief = CircularBuffer<Job>()
  private var streams = CircularBuffer<Job>()
  /// Calls that have ended in here, since they were looked for.
  private var abandonedCalls = 0
  public private(set) var runningStreams = 0
  /// Streams that may run at a time. When it falls, those that run are not touched.
  public var maxRunningStreams: Int

  public init(maxRunningStreams: Int) { self.maxRunningStreams = maxRunningStreams }

  /// Calls that wait, those that may not run yet among them.
  public var count: Int { self.brief.count + self.streams.count }

  /// Whether there is no call that may run now.
  public var isEmpty: Bool { self.brief.isEmpty && !self.mayRunStream }

  /// Any of the calls that wait.
  public var first: Job? { self.brief.first ?? self.streams.first }

  /// Since when the oldest call waits, of those that may run now: what stalled peers keep from
  /// running tells nothing of the workers.
  public var oldest: NIODeadline? {
    let stream = self.mayRunStream ? self.streams.first?.queued : nil
    guard let brief = self.brief.first?.queued else { return stream }
    return stream.map { min($0, brief) } ?? brief
  }

  private var mayRunStream: Bool {
    !self.streams.isEmpty && self.runningStreams < self.maxRunningStreams
  }

  public mutating func append(_ job: Job) {
    if job.isStream { self.streams.append(job) } else { self.brief.append(job) }
  }

  /// Takes the call that has waited longest, of those that may run.
  public mutating func popFirst() -> Job? {
    guard self.mayRunStream, let stream = self.streams.first else { return self.brief.popFirst() }
    if let brief = self.brief.first, brief.accepted < stream.accepted {
      return self.brief.popFirst()
    }
    self.runningStreams += 1
    return self.streams.popFirst()
  }

  /// A call has ended while it waited.
  ///
  /// They are looked for when they may be half of all, so that each costs the same however many wait.
  ///
  /// - Returns: those that were found, which wait no more.
  public mutating func abandoned() -> [Job] {
    self.abandonedCalls += 1
    return self.abandonedCalls >= max(16, self.count / 2) ? self.removeAbandoned() : []
  }

  /// Takes all that have ended while they waited.
  public mutating func removeAbandoned() -> [Job] {
    guard self.abandonedCalls > 0 else { return [] }
    self.abandonedCalls = 0
    return Self.removeAbandoned(from: &self.brief) + Self.removeAbandoned(from: &self.streams)
  }

  private static func removeAbandoned(from queue: inout CircularBuffer<Job>) -> [Job] {
    var found: [Job] = []
    var others = CircularBuffer<Job>()
    for job in queue {
      if job.isAbandoned { found.append(job) } else { others.append(job) }
    }
    if !found.isEmpty { queue = others }
    return found
  }

  /// Takes every call; none of them runs.
  public mutating func removeAll() -> [Job] {
    defer {
      self.brief.removeAll()
      self.streams.removeAll()
    }
    return Array(self.brief) + Array(self.streams)
  }

  /// A call that `popFirst` gave runs no more.
  public mutating func finished(_ job: Job) {
    if job.isStream { self.runningStreams -= 1 }
  }
}
