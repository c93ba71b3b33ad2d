internal import GRPCEngineServer
internal import GRPCEngineStatistics
internal import NIOCore
internal import PythonInterop
internal import Synchronization

/// Calls that wait for Python, and the threads that run them.
///
/// This is the one hand-over from the event loops to Python. Threads that run Python share the
/// GIL, so more of them awake than needed make every call slower: each release of the GIL becomes
/// a change of threads. Hence:
///
/// - a worker drains the queue for as long as there are calls, and another one is woken only when
///   nobody is awake, or when the awake ones were seen asleep in the kernel (they wait for a
///   database, a lock, a socket) while calls wait;
/// - a worker that waits for its peer, in the middle of a stream, is *held*: it does not count
///   against `max_workers`, and somebody else steps in. A peer that stalls stops nobody (`JobQueue`
///   sees to that when there are more of them than workers to step in).
///
/// What is woken too eagerly goes back to sleep by itself: from time to time one worker retires,
/// less and less often where that turns out wrong.
final class WorkerPool: Sendable {
  struct Limits: Sendable {
    /// Workers that may run a servicer at the same time (`max_workers`).
    var running: Int
    /// Workers more than that which may be held by a stream whose peer stalls.
    var held: Int
  }

  private struct State {
    var queue: JobQueue
    var idle: [WorkerThread] = []
    var awake: [WorkerThread] = []
    var held = 0
    var threads = 0
    var isSpawning = false
    var isTicking = false
    var tick = WorkerPool.shortestTick
    var isWatchingForIdleness = false
    var isStopping = false
    var lastTaken = NIODeadline.uptimeNanoseconds(0)
    var retirements = 0
    var retirePeriod = WorkerPool.shortestRetirePeriod
    var lastRetired = NIODeadline.uptimeNanoseconds(0)
  }

  /// How soon waiting calls make the pool look at its workers, and how much later at the most while
  /// looking finds them at work: a look costs a timer and a system call for each worker.
  private static let shortestTick = TimeAmount.microseconds(200)
  private static let longestTick = TimeAmount.milliseconds(2)
  /// A queue that nobody takes from for so long gets one more worker, whatever the others do: as
  /// long calls share the interpreter in grpcio too.
  private static let patience = TimeAmount.milliseconds(10)
  /// How often a server that has been busy is looked at for having become idle.
  private static let idlenessPeriod = TimeAmount.seconds(2)
  /// How long a thread that is one too many waits for work.
  private static let surplusSeconds = 5
  private static let shortestRetirePeriod = TimeAmount.milliseconds(20)
  private static let longestRetirePeriod = TimeAmount.seconds(1)

  let limits: Limits
  private let control: ControlThread
  private let backlog: Backlog
  private let slot: StatisticsSlot
  private let state: Mutex<State>

  init(
    limits: Limits,
    control: ControlThread,
    backlog: Backlog,
    slot: StatisticsSlot
  ) {
    self.limits = limits
    self.slot = slot
    self.control = control
    self.backlog = backlog
    // Of the workers that may run, one is left for calls that nobody can hold.
    let streams = limits.held + max(1, limits.running - 1)
    self.state = Mutex(State(queue: JobQueue(maxRunningStreams: streams)))
  }

  // MARK: The event loop's side

  /// Queues a call. Called on its event loop.
  func submit(_ job: PythonJob) {
    var wakeUp = WakeUp.none
    var delay: TimeAmount?
    var shouldWatch = false
    self.state.withLock { state in
      state.queue.append(job)
      self.backlog.isWaiting = true
      let isAlone = state.awake.isEmpty
      if isAlone { wakeUp = self.wakeOne(&state) }
      // A single call for a worker that was just woken needs no looking after.
      if !state.isTicking, !isAlone || state.queue.count > 1 {
        state.isTicking = true
        delay = state.tick
      }
      shouldWatch = !state.isWatchingForIdleness
      state.isWatchingForIdleness = true
    }
    self.perform(wakeUp)
    if let delay { self.scheduleTick(after: delay, on: job.call.eventLoop) }
    if shouldWatch { self.watchForIdleness(on: job.call.eventLoop) }
  }

  /// Has memory given back once nothing has run for a while.
  private func watchForIdleness(on eventLoop: any EventLoop) {
    eventLoop.scheduleTask(in: Self.idlenessPeriod) {
      let isIdle = self.state.withLock { state in
        let isIdle =
          state.queue.isEmpty && state.awake.isEmpty
          && NIODeadline.now() - state.lastTaken > Self.idlenessPeriod
        if isIdle { state.isWatchingForIdleness = false }
        return isIdle
      }
      if isIdle {
        self.control.submit(.giveBackMemory)
      } else {
        self.watchForIdleness(on: eventLoop)
      }
    }
  }

  private func scheduleTick(after delay: TimeAmount, on eventLoop: any EventLoop) {
    eventLoop.scheduleTask(in: delay) { self.tick(on: eventLoop) }
  }

  private func tick(on eventLoop: any EventLoop) {
    let awake = self.state.withLock { state -> [WorkerThread]? in
      guard !state.queue.isEmpty, !state.isStopping else {
        state.isTicking = false
        return nil
      }
      return state.awake
    }
    guard let awake else { return }
    let areBlocked = awake.allSatisfy { $0.isAsleep ?? false }
    var wakeUp = WakeUp.none
    let now = NIODeadline.now()
    let delay = self.state.withLock { state -> TimeAmount in
      guard !state.queue.isEmpty else { return state.tick }
      if areBlocked || now - state.lastTaken > Self.patience { wakeUp = self.wakeOne(&state) }
      switch wakeUp {
      case .unpark, .spawn:
        state.tick = Self.shortestTick
        if now - state.lastRetired < .milliseconds(5) {
          state.retirePeriod = min(state.retirePeriod * 2, Self.longestRetirePeriod)
        }
        return state.tick
      case .none:
        state.tick = min(state.tick * 2, Self.longestTick)
      }
      if state.awake.count > 1, state.retirements == 0,
        now - state.lastRetired > state.retirePeriod
      {
        state.retirements = 1
        state.lastRetired = now
      }
      return state.tick
    }
    self.perform(wakeUp)
    self.scheduleTick(after: delay, on: eventLoop)
  }

  // MARK: Waking

  private enum WakeUp {
    case none
    case unpark(WorkerThread)
    case spawn
  }

  private func wakeOne(_ state: inout State) -> WakeUp {
    guard state.awake.count < self.limits.running, !state.isStopping else { return .none }
    if let worker = state.idle.popLast() {
      state.awake.append(worker)
      return .unpark(worker)
    }
    guard !state.isSpawning,
      state.threads < self.limits.running + state.held
    else { return .none }
    state.isSpawning = true
    state.threads += 1
    return .spawn
  }

  private func perform(_ wakeUp: WakeUp) {
    switch wakeUp {
    case .none: break
    case .unpark(let worker): worker.parker.unpark()
    case .spawn: self.control.submit(.spawnWorker)
    }
  }

  // MARK: The workers' side, with the GIL held

  /// Begins the life of a worker thread, whose threads the control thread started.
  func enter(_ worker: WorkerThread) {
    self.state.withLock { state in
      state.isSpawning = false
      state.awake.append(worker)
    }
  }

  /// The thread that was to be started could not be.
  func spawnFailed() {
    self.state.withLock { state in
      state.isSpawning = false
      state.threads -= 1
    }
  }

  /// The next call to run; waits for it without the GIL. `nil` ends the thread.
  func next(_ worker: WorkerThread) -> PythonJob? {
    while true {
      var wakeUp = WakeUp.none
      let step = self.state.withLock { state -> Step in
        if state.isStopping, state.queue.isEmpty {
          Self.remove(worker, &state)
          state.threads -= 1
          return .end
        }
        let isSuperfluous = state.awake.count > self.limits.running
        let mayRetire = state.retirements > 0 && state.awake.count > 1
        if !isSuperfluous, !mayRetire, let job = state.queue.popFirst() {
          state.lastTaken = .now()
          self.backlog.isWaiting = !state.queue.isEmpty
          return .run(job)
        }
        if mayRetire { state.retirements = 0 }
        Self.remove(worker, &state)
        state.idle.append(worker)
        // Whoever goes to sleep makes sure that calls do not wait for nobody.
        if state.awake.isEmpty, !state.queue.isEmpty { wakeUp = self.wakeOne(&state) }
        return .sleep(isSurplus: self.hasSurplus(state))
      }
      self.perform(wakeUp)
      switch step {
      case .run(let job): return job
      case .end: return nil
      case .sleep(isSurplus: false): self.sleep { worker.parker.park() }
      case .sleep(isSurplus: true):
        let wasWoken = self.sleep { worker.parker.park(seconds: Self.surplusSeconds) }
        if !wasWoken, self.leave(worker) { return nil }
      }
    }
  }

  /// Sleeps without the GIL, and counts how long it then takes to have it back.
  private func sleep<Result>(_ park: () -> Result) -> Result {
    var woken = NIODeadline.uptimeNanoseconds(0)
    let result = Python.detached {
      defer { woken = .now() }
      return park()
    }
    let wait = NIODeadline.now() - woken
    self.slot[.interpreterWait].record(UInt64(max(0, wait.nanoseconds)))
    return result
  }

  private enum Step {
    case run(PythonJob)
    case sleep(isSurplus: Bool)
    case end
  }

  /// Whether there are threads that only stepped in for held ones, and those are back.
  private func hasSurplus(_ state: borrowing State) -> Bool {
    state.threads > self.limits.running + state.held
  }

  /// Ends a surplus thread that nothing woke, and with it whatever it keeps, such as a database
  /// connection.
  ///
  /// - Returns: false when it is needed after all.
  private func leave(_ worker: WorkerThread) -> Bool {
    self.state.withLock { state in
      guard self.hasSurplus(state),
        let index = state.idle.firstIndex(where: { $0 === worker })
      else { return false }
      state.idle.remove(at: index)
      state.threads -= 1
      return true
    }
  }

  /// A call that `next` gave runs no more.
  func finished(_ job: PythonJob) {
    guard job.isStream else { return }
    self.state.withLock { $0.queue.finished(job) }
  }

  private static func remove(_ worker: WorkerThread, _ state: inout State) {
    if let index = state.awake.firstIndex(where: { $0 === worker }) {
      state.awake.swapAt(index, state.awake.count - 1)
      state.awake.removeLast()
    }
  }

  /// Sleeps on `parker`, in the middle of a call, without the GIL. While it does, the worker does
  /// not count, and another one takes what waits.
  func hold(_ worker: WorkerThread, on parker: Parker) {
    let wakeUp = self.state.withLock { state -> WakeUp in
      Self.remove(worker, &state)
      state.held += 1
      return state.queue.isEmpty ? .none : self.wakeOne(&state)
    }
    self.perform(wakeUp)
    self.sleep { parker.park() }
    self.state.withLock { state in
      state.held -= 1
      state.awake.append(worker)
    }
  }

  // MARK: Life and statistics

  /// Ends every worker once the queue is empty. May be called from any thread.
  func stop() {
    let idle = self.state.withLock { state -> [WorkerThread] in
      state.isStopping = true
      defer { state.idle = [] }
      // Woken, they count as awake until they notice.
      state.awake.append(contentsOf: state.idle)
      return state.idle
    }
    for worker in idle { worker.parker.unpark() }
  }

  /// Since when the oldest call waits for a worker; `nil` when none waits.
  var oldestQueued: NIODeadline? { self.state.withLock { $0.queue.oldest } }

  var threadCount: Int { self.state.withLock { $0.threads } }

  var statistics: (queued: Int, awake: Int, idle: Int, held: Int, threads: Int) {
    self.state.withLock { state in
      (state.queue.count, state.awake.count, state.idle.count, state.held, state.threads)
    }
  }
}
