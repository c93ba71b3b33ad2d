public import NIOCore

/// Which worker threads run, which sleep, and when another one is asked for: what `WorkerPool`
/// does, as a value. It is told what happens and returns what is to be done; it knows no thread,
/// no clock and no Python.
///
/// Each worker that has entered and not left is exactly one of *awake* (it runs a call, or looks for
/// one), *idle* (it sleeps until it is woken) and *held* (it waits for a peer, in the middle of a
/// call). Only an idle one is woken, only an idle one leaves, and waking it makes it awake at
/// once, before the thread itself notices: so a thread whose sleep runs out while it is being
/// woken finds that it is awake, and no wake-up is taken for another.
public struct WorkerSchedule<Job: QueuedCall>: Sendable {
  public struct Limits: Sendable {
    /// Workers that may run a servicer at the same time (`max_workers`).
    public var running: Int
    /// Workers more than that which may be held by a stream whose peer stalls.
    public var held: Int

    public init(running: Int, held: Int) {
      self.running = running
      self.held = held
    }
  }

  /// One worker thread, from `entered` until `next` or `woke` ends it.
  public typealias WorkerID = Int

  /// What is to be done, outside of whatever guards the schedule.
  public enum Action: Hashable, Sendable {
    case none
    /// The worker is awake from now on; its thread is to be woken.
    case wake(WorkerID)
    /// A thread is to be started, which then calls `entered`; `spawnFailed` when there is none.
    case spawn
    /// The call of a held worker is to be ended, so that the worker is there for others.
    case evict(WorkerID)
    /// The call is to be refused: every worker has left, and none will come.
    case refuse
  }

  /// What a worker is to do that has nothing to run.
  public enum Step: Sendable {
    case run(Job)
    /// To sleep until it is woken, and then ask `woke`; with `mayLeave`, for `surplusSeconds` at most.
    case sleep(mayLeave: Bool)
    case leave
  }

  /// What a worker is to do whose sleep has ended.
  public enum Awakening: Hashable, Sendable {
    /// Somebody has woken it: it looks for a call.
    case goOn
    case sleep(mayLeave: Bool)
    case leave
  }

  private enum Standing: Hashable {
    case awake
    case idle
    /// `order` tells which of them was held last.
    case held(order: UInt64, isEvicted: Bool)
  }

  /// No thread can be started, for the time being.
  private struct Shortage {
    var since: NIODeadline
    var attempts: Int
    /// Before this nobody asks again.
    var until: NIODeadline
  }

  /// How soon waiting calls make the pool look at its workers, and how much later at the most while
  /// looking finds them at work: a look costs a timer and a system call for each worker.
  private static var shortestLook: TimeAmount { .microseconds(200) }
  private static var longestLook: TimeAmount { .milliseconds(2) }
  /// A queue that nobody takes from for so long gets one more worker, whatever the others do: as
  /// long calls share the interpreter in grpcio too.
  private static var patience: TimeAmount { .milliseconds(10) }
  private static var shortestRetirePeriod: TimeAmount { .milliseconds(20) }
  private static var longestRetirePeriod: TimeAmount { .seconds(1) }
  /// After how long a thread that was asked for, and has neither entered nor failed, is given up.
  private static var spawnPatience: TimeAmount { .seconds(5) }
  /// How soon a refused thread is asked for again; twice as late each time, up to a second.
  private static var shortestRefusal: TimeAmount { .milliseconds(10) }
  private static var longestRefusal: TimeAmount { .seconds(1) }
  /// For how long calls wait for the first thread of all before they are refused.
  public static var strandedTime: TimeAmount { .seconds(1) }
  /// How long a thread that is one too many waits for work before it leaves, in seconds.
  public static var surplusSeconds: Int { 5 }

  public let limits: Limits
  private var queue: JobQueue<Job>
  private let maxRunningStreams: Int
  private var standings: [WorkerID: Standing] = [:]
  /// The awake ones in no order; the idle ones with the one that fell asleep last at the end.
  public private(set) var awake: [WorkerID] = []
  private var idle: [WorkerID] = []
  private var heldCount = 0
  private var evictedCount = 0
  private var holds: UInt64 = 0
  private var lastID = 0
  /// Since when a thread is asked for.
  private var spawning: NIODeadline?
  private var shortage: Shortage?
  private var isLooking = false
  private var lookDelay = Self.shortestLook
  private var isStopping = false
  private var lastTaken = NIODeadline.uptimeNanoseconds(0)
  private var mayRetire = false
  private var retirePeriod = Self.shortestRetirePeriod
  private var lastRetired = NIODeadline.uptimeNanoseconds(0)

  public init(limits: Limits) {
    self.limits = limits
    // Of the workers that may run, one is left for calls that nobody can hold.
    self.maxRunningStreams = limits.held + max(1, limits.running - 1)
    self.queue = JobQueue(maxRunningStreams: self.maxRunningStreams)
  }

  // MARK: Figures

  /// Calls that wait for a worker.
  public var queuedCount: Int { self.queue.count }
  /// Whether calls wait that a worker could run now.
  public var hasWaiting: Bool { !self.queue.isEmpty }
  public var oldestQueued: NIODeadline? { self.queue.oldest }
  /// Any of the calls that wait.
  public var anyQueued: Job? { self.queue.first }
  public var counts: (awake: Int, idle: Int, held: Int) {
    (self.awake.count, self.idle.count, self.heldCount)
  }
  /// Threads that are there, and the one that has been asked for.
  public var threadCount: Int {
    self.standings.count + (self.spawning == nil ? 0 : 1)
  }

  // MARK: Calls that come

  /// A call waits for a worker.
  ///
  /// - Returns: what to do, and after how long to `look`, if at all: looking goes on by itself.
  public mutating func submitted(_ job: Job) -> (Action, look: TimeAmount?) {
    guard !self.isStopping || !self.standings.isEmpty else { return (.refuse, nil) }
    self.queue.append(job)
    var action = Action.none
    let isAlone = self.awake.isEmpty
    if isAlone { action = self.wakeOne(job.queued) }
    // A single call for a worker that was just woken needs no looking after; but while threads are
    // short it may be one that may not run yet.
    if case .wake = action, self.queue.count == 1, self.shortage == nil { return (action, nil) }
    return (action, self.beginLooking(after: self.lookDelay))
  }

  /// A call has ended while it waited.
  ///
  /// - Returns: calls that wait no more, as they have ended.
  public mutating func abandoned() -> [Job] { self.queue.abandoned() }

  /// Takes out all calls that have ended while they waited, for figures of those that wait.
  public mutating func removeAbandoned() -> [Job] { self.queue.removeAbandoned() }

  private mutating func beginLooking(after delay: TimeAmount) -> TimeAmount? {
    guard !self.isLooking, !self.isStopping else { return nil }
    self.isLooking = true
    return delay
  }

  /// Time has passed while calls waited.
  ///
  /// - Parameter areBlocked: whether all that are awake were seen asleep in the kernel: they wait
  ///   for a database, a lock, a socket.
  /// - Returns: what to do, and after how long to look again, if at all.
  public mutating func look(areBlocked: Bool, now: NIODeadline) -> (Action, again: TimeAmount?) {
    if let shortage, now >= shortage.until, !self.idle.isEmpty { self.endShortage() }
    guard !self.isStopping, self.queue.count > 0 else { return self.endLooking() }
    guard self.hasWaiting else {
      // Streams wait for others to end. They also may run once there are threads again.
      guard let shortage else { return self.endLooking() }
      return (self.ask(now), max(shortage.until - now, Self.longestLook))
    }
    var action = Action.none
    if areBlocked || now - self.lastTaken > Self.patience { action = self.wakeOne(now) }
    guard action == .none else {
      self.lookDelay = Self.shortestLook
      if now - self.lastRetired < .milliseconds(5) {
        self.retirePeriod = min(self.retirePeriod * 2, Self.longestRetirePeriod)
      }
      return (action, self.lookDelay)
    }
    self.lookDelay = min(self.lookDelay * 2, Self.longestLook)
    if self.awake.count > 1, !self.mayRetire, now - self.lastRetired > self.retirePeriod {
      self.mayRetire = true
      self.lastRetired = now
    }
    return (.none, self.lookDelay)
  }

  private mutating func endLooking() -> (Action, again: TimeAmount?) {
    self.isLooking = false
    self.mayRetire = false
    return (.none, nil)
  }

  // MARK: Waking and starting threads

  private mutating func wakeOne(_ now: NIODeadline) -> Action {
    guard self.awake.count < self.limits.running, !self.isStopping else { return .none }
    if let worker = self.idle.popLast() {
      self.standings[worker] = .awake
      self.awake.append(worker)
      return .wake(worker)
    }
    let spawn = self.ask(now)
    return spawn == .none && self.shortage != nil ? self.evictOne() : spawn
  }

  /// Asks for a thread, unless one is under way, or was refused just now.
  private mutating func ask(_ now: NIODeadline) -> Action {
    if let spawning, now - spawning < Self.spawnPatience { return .none }
    if let shortage, now < shortage.until { return .none }
    guard self.standings.count < self.limits.running + self.heldCount else { return .none }
    self.spawning = now
    return .spawn
  }

  /// Ends the stream that was held last, for the sake of calls that wait: peers that stall must not
  /// keep the threads that there are while others can't be had.
  private mutating func evictOne() -> Action {
    guard self.awake.count + self.evictedCount < self.limits.running else { return .none }
    var last: (worker: WorkerID, order: UInt64)?
    for (worker, standing) in self.standings {
      guard case .held(let order, isEvicted: false) = standing, order > last?.order ?? 0 else {
        continue
      }
      last = (worker, order)
    }
    guard let last else { return .none }
    self.standings[last.worker] = .held(order: last.order, isEvicted: true)
    self.evictedCount += 1
    return .evict(last.worker)
  }

  /// A thread that was asked for is there, awake.
  public mutating func entered() -> WorkerID {
    self.spawning = nil
    self.endShortage()
    self.lastID += 1
    self.standings[self.lastID] = .awake
    self.awake.append(self.lastID)
    return self.lastID
  }

  /// The thread that was asked for could not be started. Until one can, of those that there are one
  /// is left for calls that nobody can hold.
  ///
  /// - Returns: the calls to refuse, as there has been no thread at all for `strandedTime` or none
  ///   is asked for any more; and after how long to look.
  public mutating func spawnFailed(now: NIODeadline) -> (refused: [Job], look: TimeAmount?) {
    self.spawning = nil
    var shortage = self.shortage ?? Shortage(since: now, attempts: 0, until: now)
    let delay = Self.shortestRefusal * (1 << min(shortage.attempts, 10))
    shortage.attempts += 1
    shortage.until = now + min(delay, Self.longestRefusal)
    self.shortage = shortage
    self.queue.maxRunningStreams = min(self.maxRunningStreams, max(1, self.standings.count - 1))
    let isStranded =
      self.standings.isEmpty && (self.isStopping || now - shortage.since >= Self.strandedTime)
    let refused = isStranded ? self.queue.removeAll() : []
    return (refused, self.queue.count > 0 ? self.beginLooking(after: Self.shortestLook) : nil)
  }

  private mutating func endShortage() {
    self.shortage = nil
    self.queue.maxRunningStreams = self.maxRunningStreams
  }

  // MARK: Workers

  /// An awake worker looks for a call.
  public mutating func next(_ worker: WorkerID, now: () -> NIODeadline) -> Step {
    if self.isStopping {
      // Nobody sleeps any more, however many they are: nobody would be woken.
      if let job = self.queue.popFirst() { return .run(job) }
      self.remove(worker)
      self.standings[worker] = nil
      return .leave
    }
    let isSuperfluous = self.awake.count > self.limits.running
    let retires = self.mayRetire && self.awake.count > 1
    if !isSuperfluous, !retires, let job = self.queue.popFirst() {
      self.lastTaken = now()
      return .run(job)
    }
    if retires { self.mayRetire = false }
    self.remove(worker)
    self.idle.append(worker)
    self.standings[worker] = .idle
    return .sleep(mayLeave: self.mayBeSurplus)
  }

  /// The sleep of a worker has ended: somebody has woken it, its time has run out, or neither.
  public mutating func woke(_ worker: WorkerID, hasTimedOut: Bool) -> Awakening {
    guard self.standings[worker] == .idle else { return .goOn }
    guard hasTimedOut, self.standings.count > self.limits.running + self.heldCount,
      let index = self.idle.firstIndex(of: worker)
    else { return .sleep(mayLeave: self.mayBeSurplus) }
    self.idle.remove(at: index)
    self.standings[worker] = nil
    return .leave
  }

  /// Whether there are threads that only stepped in for held ones; as those come back, they leave.
  private var mayBeSurplus: Bool { self.standings.count > self.limits.running }

  /// A call that `next` gave runs no more.
  public mutating func finished(_ job: Job) { self.queue.finished(job) }

  private mutating func remove(_ worker: WorkerID) {
    guard let index = self.awake.firstIndex(of: worker) else { return }
    self.awake.swapAt(index, self.awake.count - 1)
    self.awake.removeLast()
  }

  /// An awake worker waits for a peer, in the middle of a call. While it does, it does not count.
  ///
  /// - Parameter now: asked for only when calls wait.
  public mutating func held(_ worker: WorkerID, now: () -> NIODeadline) -> Action {
    self.remove(worker)
    self.holds += 1
    self.heldCount += 1
    self.standings[worker] = .held(order: self.holds, isEvicted: false)
    return self.hasWaiting ? self.wakeOne(now()) : .none
  }

  /// A held worker goes on with its call, and may for a while be one more than may run.
  public mutating func released(_ worker: WorkerID) {
    if case .held(_, isEvicted: true) = self.standings[worker] { self.evictedCount -= 1 }
    self.heldCount -= 1
    self.standings[worker] = .awake
    self.awake.append(worker)
  }

  /// Every worker leaves once no call waits that may run.
  ///
  /// - Returns: the workers to wake; and the calls to refuse, where there is no worker and none is to
  ///   come.
  public mutating func stop() -> (woken: [WorkerID], refused: [Job]) {
    self.isStopping = true
    defer { self.idle = [] }
    for worker in self.idle { self.standings[worker] = .awake }
    self.awake.append(contentsOf: self.idle)
    let isDeserted = self.standings.isEmpty && self.spawning == nil
    return (self.idle, isDeserted ? self.queue.removeAll() : [])
  }
}
