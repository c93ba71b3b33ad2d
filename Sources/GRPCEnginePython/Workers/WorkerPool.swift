internal import GRPCEngineLocks
internal import GRPCEngineServer
internal import GRPCEngineStatistics
internal import GRPCEngineWire
internal import GRPCEngineWorkers
internal import NIOCore
internal import PythonInterop

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
///
/// What is decided, `WorkerSchedule` decides; here are the threads, the timers and the mutex.
final class WorkerPool: Sendable {
  typealias Schedule = WorkerSchedule<PythonJob>

  private struct State {
    var schedule: Schedule
    var threads: [Schedule.WorkerID: WorkerThread] = [:]
  }

  /// What is to be done once the mutex is given back.
  private enum Effect {
    case none
    case unpark(WorkerThread)
    case spawn
    case evict(Call)
    case refuse(Call)
  }

  private let control: ControlThread
  private let backlog: Backlog
  private let slot: StatisticsSlot
  private let state: Locked<State>

  init(
    limits: Schedule.Limits,
    control: ControlThread,
    backlog: Backlog,
    slot: StatisticsSlot
  ) {
    self.slot = slot
    self.control = control
    self.backlog = backlog
    self.state = Locked(State(schedule: Schedule(limits: limits)))
  }

  // MARK: The event loop's side

  /// Queues a call. May be called from any thread; it is its event loop as a rule.
  func submit(_ job: PythonJob) {
    var effect = Effect.none
    var delay: TimeAmount?
    self.state.withLock { state in
      let (action, look) = state.schedule.submitted(job)
      guard action != .refuse else {
        effect = .refuse(job.call)
        return
      }
      effect = Self.effect(of: action, state)
      self.backlog.isWaiting = true
      delay = look
    }
    self.perform(effect)
    if let delay { self.scheduleLook(after: delay, on: job.call.eventLoop) }
  }

  /// A call has ended while it was queued. May be called from any thread.
  func abandoned() {
    // What is found is dropped when the mutex is given back.
    _ = self.state.withLock { self.remove(from: &$0) { $0.abandoned() } }
  }

  /// Takes calls out of the queue that have ended in there.
  private func remove(
    from state: inout State,
    _ remove: (inout Schedule) -> [PythonJob]
  ) -> [PythonJob] {
    let found = remove(&state.schedule)
    if !found.isEmpty { self.backlog.isWaiting = state.schedule.hasWaiting }
    return found
  }

  private func scheduleLook(after delay: TimeAmount, on eventLoop: any EventLoop) {
    eventLoop.scheduleTask(in: delay) { self.look(on: eventLoop) }
  }

  private func look(on eventLoop: any EventLoop) {
    let awake = self.state.withLock { state in
      state.schedule.hasWaiting ? state.schedule.awake.compactMap { state.threads[$0] } : []
    }
    let areBlocked = awake.allSatisfy { $0.isAsleep ?? false }
    let (effect, again) = self.state.withLock { state -> (Effect, TimeAmount?) in
      let (action, again) = state.schedule.look(areBlocked: areBlocked, now: .now())
      return (Self.effect(of: action, state), again)
    }
    self.perform(effect)
    if let again { self.scheduleLook(after: again, on: eventLoop) }
  }

  // MARK: Effects

  private static func effect(of action: Schedule.Action, _ state: borrowing State) -> Effect {
    switch action {
    // `refuse` is an answer to a call that comes, and to nothing else.
    case .none, .refuse: return .none
    case .wake(let worker): return state.threads[worker].map { .unpark($0) } ?? .none
    case .spawn: return .spawn
    case .evict(let worker): return state.threads[worker]?.heldCall.map { .evict($0) } ?? .none
    }
  }

  private func perform(_ effect: Effect) {
    switch effect {
    case .none: break
    case .unpark(let worker): worker.parker.unpark()
    case .spawn: self.control.submit(.spawnWorker)
    case .refuse(let call):
      let status = Status(code: .unavailable, details: "The server has stopped")
      call.finish(status, isLast: true)
    case .evict(let call):
      call.cancel(
        Status(
          code: .resourceExhausted,
          details: "The server can start no more threads, and others wait for this one"
        )
      )
    }
  }

  // MARK: The workers' side, with the GIL held

  /// Begins the life of a worker thread, which the control thread started.
  func enter(_ worker: WorkerThread) {
    self.state.withLock { state in
      worker.id = state.schedule.entered()
      state.threads[worker.id] = worker
    }
  }

  /// The thread that was to be started could not be. The calls that nobody can serve are refused.
  func spawnFailed() {
    let (refused, delay, eventLoop) = self.state.withLock { state in
      let (refused, look) = state.schedule.spawnFailed(now: .now())
      return (refused, look, state.schedule.anyQueued?.call.eventLoop)
    }
    Self.refuse(refused, "The server can start no thread")
    if let delay, let eventLoop { self.scheduleLook(after: delay, on: eventLoop) }
  }

  /// The next call to run; waits for it without the GIL. `nil` ends the thread.
  func next(_ worker: WorkerThread) -> PythonJob? {
    while true {
      let step = self.state.withLock { state -> Schedule.Step in
        let step = state.schedule.next(worker.id) { .now() }
        switch step {
        case .run: self.backlog.isWaiting = state.schedule.hasWaiting
        case .sleep: break
        case .leave: state.threads[worker.id] = nil
        }
        return step
      }
      switch step {
      case .run(let job): return job
      case .leave: return nil
      case .sleep(let mayLeave): guard self.sleep(worker, mayLeave) else { return nil }
      }
    }
  }

  /// Sleeps until somebody wakes the worker.
  ///
  /// - Returns: false when it is one too many, and leaves.
  private func sleep(_ worker: WorkerThread, _ mayLeave: Bool) -> Bool {
    var mayLeave = mayLeave
    while true {
      let isWoken = self.sleep {
        guard mayLeave else {
          worker.parker.park()
          return true
        }
        return worker.parker.park(seconds: Schedule.surplusSeconds)
      }
      let awakening = self.state.withLock { state in
        let awakening = state.schedule.woke(worker.id, hasTimedOut: !isWoken)
        if awakening == .leave { state.threads[worker.id] = nil }
        return awakening
      }
      switch awakening {
      case .goOn: return true
      case .leave: return false
      case .sleep(let next): mayLeave = next
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

  /// A call that `next` gave runs no more.
  func finished(_ job: PythonJob) {
    guard job.isStream else { return }
    self.state.withLock { $0.schedule.finished(job) }
  }

  /// Sleeps on `parker`, in the middle of a call, without the GIL. While it does, the worker does
  /// not count, and another one takes what waits.
  func hold(_ worker: WorkerThread, in call: Call, on parker: Parker) {
    let effect = self.state.withLock { state -> Effect in
      worker.heldCall = call
      return Self.effect(of: state.schedule.held(worker.id) { .now() }, state)
    }
    self.perform(effect)
    self.sleep { parker.park() }
    self.state.withLock { state in
      worker.heldCall = nil
      state.schedule.released(worker.id)
    }
  }

  // MARK: Life and statistics

  /// Ends every worker once the queue is empty. With the GIL held, as calls may go that nobody runs.
  func stop() {
    let (woken, refused) = self.state.withLock { state in
      let (woken, refused) = state.schedule.stop()
      return (woken.compactMap { state.threads[$0] }, refused)
    }
    for worker in woken { worker.parker.unpark() }
    Self.refuse(refused, "The server has stopped")
  }

  private static func refuse(_ jobs: [PythonJob], _ details: String) {
    for job in jobs { job.call.finish(Status(code: .unavailable, details: details), isLast: true) }
  }

  /// Since when the oldest call waits for a worker; `nil` when none waits.
  var oldestQueued: NIODeadline? {
    let (_, oldest) = self.state.withLock { state in
      (self.remove(from: &state) { $0.removeAbandoned() }, state.schedule.oldestQueued)
    }
    return oldest
  }

  var statistics: (queued: Int, awake: Int, idle: Int, held: Int, threads: Int) {
    let (_, statistics) = self.state.withLock { state in
      let gone = self.remove(from: &state) { $0.removeAbandoned() }
      let (awake, idle, held) = state.schedule.counts
      let (queued, threads) = (state.schedule.queuedCount, state.schedule.threadCount)
      return (gone, (queued, awake, idle, held, threads))
    }
    return statistics
  }
}
