import GRPCEngineTesting
import NIOCore

@testable import GRPCEngineWorkers

/// A pool without threads: does what `WorkerSchedule` says, in random order and with everything that
/// can go wrong on the way, and looks at what must always hold.
struct WorkerSimulation {
  typealias Schedule = WorkerSchedule<TestCall>

  private enum Thread {
    /// Runs a call, or is about to look for one.
    case awake(TestCall?)
    /// Sleeps; somebody may have left a wake-up for it that it has not seen.
    case asleep(mayLeave: Bool, isSignalled: Bool)
    case held(TestCall, isEvicted: Bool)
  }

  private var random: SplitMix
  private let limits: Schedule.Limits
  private var schedule: Schedule
  private var now = NIODeadline.uptimeNanoseconds(1_000_000_000)
  private var threads: [Schedule.WorkerID: Thread] = [:]
  private var spawnsAsked = 0
  private var looks = 0
  /// How likely a thread can't be started now, in percent; it changes.
  private var refusals = 0
  private var lastCall = 0
  private var waiting: Set<TestCall> = []
  private(set) var fault: String?

  init(seed: UInt64) {
    self.random = SplitMix(seed: seed)
    self.limits = Schedule.Limits(
      running: Int.random(in: 1...4, using: &self.random),
      held: Int.random(in: 0...6, using: &self.random)
    )
    self.schedule = Schedule(limits: self.limits)
  }

  private mutating func fail(_ text: String) { if self.fault == nil { self.fault = text } }

  // MARK: What can happen

  mutating func step() {
    self.now = self.now + .microseconds(Int64.random(in: 0...3000, using: &self.random))
    switch Int.random(in: 0..<100, using: &self.random) {
    case 0..<14: self.submit(isStream: false)
    case 14..<24: self.submit(isStream: true)
    case 24..<34: self.endSpawn()
    case 34..<44: self.look(areBlocked: Bool.random(using: &self.random))
    case 44..<45:
      self.refusals = [0, 0, 50, 100].randomElement(using: &self.random) ?? 0
    case 45..<46: self.now = self.now + .seconds(6)
    default:
      guard let worker = self.threads.keys.sorted().randomElement(using: &self.random) else {
        return
      }
      self.move(worker)
    }
    self.check()
  }

  private mutating func submit(isStream: Bool) {
    // Otherwise the queue would grow for ever, as no time is modelled that calls take.
    guard self.waiting.count < 20 else { return }
    self.lastCall += 1
    let call = TestCall(id: self.lastCall, isStream: isStream, accepted: self.now)
    self.waiting.insert(call)
    let (action, look) = self.schedule.submitted(call)
    if action == .refuse {
      self.fail("a call is refused that somebody could run")
      self.waiting.remove(call)
    }
    self.perform(action)
    if look != nil { self.looks += 1 }
  }

  private mutating func endSpawn() {
    guard self.spawnsAsked > 0 else { return }
    self.spawnsAsked -= 1
    if Int.random(in: 0..<100, using: &self.random) < self.refusals {
      let (refused, look) = self.schedule.spawnFailed(now: self.now)
      if look != nil { self.looks += 1 }
      self.refuse(refused)
    } else {
      let worker = self.schedule.entered()
      if self.threads[worker] != nil { self.fail("two workers have one name") }
      self.threads[worker] = .awake(nil)
    }
  }

  private mutating func refuse(_ calls: [TestCall]) {
    for call in calls {
      if !self.threads.isEmpty { self.fail("a call is refused although there are threads") }
      if self.waiting.remove(call) == nil { self.fail("a call is refused that did not wait") }
    }
  }

  private mutating func look(areBlocked: Bool) {
    guard self.looks > 0 else { return }
    self.looks -= 1
    let (action, again) = self.schedule.look(areBlocked: areBlocked, now: self.now)
    self.perform(action)
    if again != nil { self.looks += 1 }
  }

  /// Something happens to a thread, or it does something.
  private mutating func move(_ worker: Schedule.WorkerID) {
    guard let thread = self.threads[worker] else { return }
    switch thread {
    case .awake(nil):
      self.next(worker)
    case .awake(let call?):
      if call.isStream, Bool.random(using: &self.random) {
        self.threads[worker] = .held(call, isEvicted: false)
        let now = self.now
        self.perform(self.schedule.held(worker) { now })
      } else {
        self.schedule.finished(call)
        self.threads[worker] = .awake(nil)
      }
    case .held(let call, let isEvicted):
      self.schedule.released(worker)
      self.threads[worker] = .awake(call)
      guard isEvicted else { return }
      self.schedule.finished(call)
      self.threads[worker] = .awake(nil)
    case .asleep(let mayLeave, let isSignalled):
      // With a wake-up there, the time may have run out all the same, just before it came.
      let hasTimedOut = mayLeave && (!isSignalled || Bool.random(using: &self.random))
      guard isSignalled || hasTimedOut else { return }
      self.wake(worker, mayLeave: mayLeave, hasTimedOut: hasTimedOut, isSignalled: isSignalled)
    }
  }

  private mutating func next(_ worker: Schedule.WorkerID) {
    let now = self.now
    switch self.schedule.next(worker, now: { now }) {
    case .run(let call):
      if self.waiting.remove(call) == nil { self.fail("a call runs twice") }
      self.threads[worker] = .awake(call)
    case .sleep(let mayLeave):
      let isSignalled = self.leftOver.remove(worker) != nil
      self.threads[worker] = .asleep(mayLeave: mayLeave, isSignalled: isSignalled)
    case .leave:
      self.leftOver.remove(worker)
      self.threads[worker] = nil
    }
  }

  /// Wake-ups that came when the sleep had just ended by itself: a parker keeps them.
  private var leftOver: Set<Schedule.WorkerID> = []

  private mutating func wake(
    _ worker: Schedule.WorkerID,
    mayLeave: Bool,
    hasTimedOut: Bool,
    isSignalled: Bool
  ) {
    let isLeftOver = isSignalled && hasTimedOut
    switch self.schedule.woke(worker, hasTimedOut: hasTimedOut) {
    case .goOn:
      if isLeftOver { self.leftOver.insert(worker) }
      self.threads[worker] = .awake(nil)
    case .sleep(let mayLeave):
      self.threads[worker] = .asleep(mayLeave: mayLeave, isSignalled: isLeftOver)
    case .leave:
      if !mayLeave { self.fail("a worker leaves that was to sleep") }
      self.threads[worker] = nil
    }
  }

  private mutating func perform(_ action: Schedule.Action) {
    switch action {
    case .none, .refuse: break
    case .spawn: self.spawnsAsked += 1
    case .wake(let worker):
      switch self.threads[worker] {
      case .asleep(let mayLeave, _):
        self.threads[worker] = .asleep(mayLeave: mayLeave, isSignalled: true)
      default: self.fail("a worker is woken that does not sleep")
      }
    case .evict(let worker):
      switch self.threads[worker] {
      case .held(let call, isEvicted: false):
        self.threads[worker] = .held(call, isEvicted: true)
      default: self.fail("a worker makes way that is not held")
      }
    }
  }

  // MARK: What must hold

  private mutating func check() {
    let (awake, idle, held) = self.schedule.counts
    if awake + idle + held != self.threads.count {
      self.fail("\(awake) awake, \(idle) idle, \(held) held of \(self.threads.count) threads")
    }
    if Set(self.schedule.awake).count != awake { self.fail("a worker is awake twice") }
    var heldThreads = 0
    var streams = 0
    for thread in self.threads.values {
      switch thread {
      case .held:
        heldThreads += 1
        streams += 1
      case .awake(let call): streams += call?.isStream == true ? 1 : 0
      case .asleep: break
      }
    }
    if heldThreads != held { self.fail("\(held) held, \(heldThreads) in truth") }
    if streams > self.limits.held + max(1, self.limits.running - 1) {
      self.fail("\(streams) streams run")
    }
    if self.schedule.queuedCount != self.waiting.count {
      self.fail("\(self.schedule.queuedCount) of \(self.waiting.count) calls wait")
    }
    if self.schedule.hasWaiting, awake == 0, self.spawnsAsked == 0, self.looks == 0 {
      self.fail("calls wait, and nobody will ever take them")
    }
    if self.looks > 1 { self.fail("two look at the workers") }
    // What may not run while threads are short is thought of once they are not.
    let mostStreams = self.limits.held + max(1, self.limits.running - 1)
    if self.schedule.queuedCount > 0, !self.schedule.hasWaiting, streams < mostStreams,
      self.spawnsAsked == 0, self.looks == 0
    {
      self.fail("streams wait, and nobody will ever look whether they may run")
    }
  }

  // MARK: The end

  /// Lets everything end that has begun; then the pool must be as it was at first. Or stops it at
  /// once, and then nobody may be left.
  mutating func settle() {
    self.refusals = 0
    if Bool.random(using: &self.random) { return self.stop() }
    self.run { $0.waiting.isEmpty && $0.schedule.counts.awake + $0.schedule.counts.held == 0 }
    if !self.waiting.isEmpty { self.fail("\(self.waiting.count) calls were never taken") }
    self.run { $0.threads.count <= $0.limits.running }
    self.check()
    // As much at once as a fresh one can.
    for _ in 0..<self.limits.running + 1 { self.submit(isStream: false) }
    for _ in 0..<1000 where self.runningCount < self.limits.running {
      self.now = self.now + .milliseconds(1)
      self.endSpawn()
      self.look(areBlocked: true)
      for worker in self.threads.keys.sorted() {
        if case .awake(_?) = self.threads[worker] { continue }
        self.move(worker)
      }
    }
    if self.runningCount != self.limits.running {
      self.fail("\(self.runningCount) of \(self.limits.running) workers run")
    }
    self.run { $0.waiting.isEmpty && $0.schedule.counts.awake == 0 }
    self.stop()
  }

  private mutating func stop() {
    let (woken, refused) = self.schedule.stop()
    for worker in woken { self.perform(.wake(worker)) }
    self.refuse(refused)
    self.run { $0.threads.isEmpty && $0.spawnsAsked == 0 }
    if !self.threads.isEmpty { self.fail("\(self.threads.count) threads go on after the stop") }
    if self.schedule.queuedCount > 0 { self.fail("calls wait for nobody after the end") }
    let late = TestCall(id: self.lastCall + 1, isStream: false, accepted: self.now)
    if self.schedule.submitted(late).0 != .refuse { self.fail("a call waits after the end") }
  }

  private var runningCount: Int {
    self.threads.values.count { thread in
      if case .awake(_?) = thread { true } else { false }
    }
  }

  private mutating func run(until isDone: (Self) -> Bool) {
    for _ in 0..<10_000 where !isDone(self) {
      self.now = self.now + .milliseconds(1)
      self.endSpawn()
      self.look(areBlocked: true)
      for worker in self.threads.keys.sorted() { self.move(worker) }
      if self.fault != nil { return }
    }
  }
}
