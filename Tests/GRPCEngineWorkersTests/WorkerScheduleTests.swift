import NIOCore
import Testing

@testable import GRPCEngineWorkers

struct WorkerScheduleTests {
  typealias Schedule = WorkerSchedule<TestCall>

  private static func at(_ milliseconds: Int64) -> NIODeadline {
    .uptimeNanoseconds(1_000_000_000) + .milliseconds(milliseconds)
  }

  private static func isRun(_ step: Schedule.Step) -> Bool {
    if case .run = step { true } else { false }
  }

  @Test("The first call asks for a thread, the second one has it looked for")
  func firstCall() {
    var schedule = Schedule(limits: .init(running: 2, held: 1))
    let (action, look) = schedule.submitted(TestCall(accepted: Self.at(0)))
    #expect(action == .spawn)
    // Somebody must notice when that thread never comes.
    #expect(look != nil)
    let worker = schedule.entered()
    #expect(Self.isRun(schedule.next(worker) { Self.at(1) }))
    let (second, _) = schedule.submitted(TestCall(accepted: Self.at(1)))
    #expect(second == .none)
    let (third, again) = schedule.look(areBlocked: true, now: Self.at(2))
    #expect(third == .spawn)
    #expect(again != nil)
  }

  @Test("A single call wakes an idle worker, and needs no looking after")
  func idleWorker() {
    var schedule = Schedule(limits: .init(running: 2, held: 1))
    let worker = schedule.entered()
    guard case .sleep(mayLeave: false) = schedule.next(worker, now: { Self.at(0) }) else {
      Issue.record("It has nothing to run, and is not one too many")
      return
    }
    let (action, look) = schedule.submitted(TestCall(accepted: Self.at(1)))
    #expect(action == .wake(worker))
    #expect(look == nil)
    #expect(schedule.woke(worker, hasTimedOut: false) == .goOn)
    #expect(Self.isRun(schedule.next(worker) { Self.at(1) }))
  }

  @Test("A thread whose sleep runs out while it is being woken is awake, and counts once")
  func timeOutAmidAWakeUp() {
    var schedule = Schedule(limits: .init(running: 1, held: 1))
    let (first, second) = (schedule.entered(), schedule.entered())
    guard case .sleep(mayLeave: true) = schedule.next(second, now: { Self.at(0) }),
      case .sleep(mayLeave: true) = schedule.next(first, now: { Self.at(0) })
    else {
      Issue.record("Either may be one too many")
      return
    }
    let (action, _) = schedule.submitted(TestCall(accepted: Self.at(5000)))
    #expect(action == .wake(first))
    // Its sleep has run out before the wake-up came.
    #expect(schedule.woke(first, hasTimedOut: true) == .goOn)
    #expect(Self.isRun(schedule.next(first) { Self.at(5000) }))
    #expect(schedule.counts == (awake: 1, idle: 1, held: 0))
    guard case .sleep = schedule.next(first, now: { Self.at(5001) }) else {
      Issue.record("There is nothing to run")
      return
    }
    // The wake-up that it has not taken wakes it now, for nothing.
    #expect(schedule.woke(first, hasTimedOut: false) == .sleep(mayLeave: true))
    #expect(schedule.counts == (awake: 0, idle: 2, held: 0))
    #expect(schedule.woke(second, hasTimedOut: true) == .leave)
    #expect(schedule.counts == (awake: 0, idle: 1, held: 0))
    #expect(schedule.woke(first, hasTimedOut: true) == .sleep(mayLeave: false))
  }

  @Test("A refused thread is asked for again, later each time")
  func refusedThread() {
    var schedule = Schedule(limits: .init(running: 2, held: 1))
    #expect(schedule.submitted(TestCall(accepted: Self.at(0))).0 == .spawn)
    let (refused, _) = schedule.spawnFailed(now: Self.at(1))
    #expect(refused.isEmpty)
    #expect(schedule.look(areBlocked: true, now: Self.at(5)).0 == .none)
    #expect(schedule.look(areBlocked: true, now: Self.at(11)).0 == .spawn)
    _ = schedule.spawnFailed(now: Self.at(12))
    #expect(schedule.look(areBlocked: true, now: Self.at(31)).0 == .none)
    #expect(schedule.look(areBlocked: true, now: Self.at(32)).0 == .spawn)
    let worker = schedule.entered()
    #expect(Self.isRun(schedule.next(worker) { Self.at(33) }))
  }

  @Test("Without any thread for a second, calls are refused")
  func strandedCalls() {
    var schedule = Schedule(limits: .init(running: 2, held: 1))
    #expect(schedule.submitted(TestCall(accepted: Self.at(0))).0 == .spawn)
    #expect(schedule.spawnFailed(now: Self.at(1)).refused.isEmpty)
    #expect(schedule.look(areBlocked: true, now: Self.at(1000)).0 == .spawn)
    #expect(schedule.spawnFailed(now: Self.at(1000)).refused.isEmpty)
    #expect(schedule.look(areBlocked: true, now: Self.at(1100)).0 == .spawn)
    #expect(schedule.spawnFailed(now: Self.at(1101)).refused.count == 1)
    #expect(schedule.queuedCount == 0)
  }

  @Test("A thread that was asked for and never comes is given up after five seconds")
  func lostThread() {
    var schedule = Schedule(limits: .init(running: 2, held: 1))
    #expect(schedule.submitted(TestCall(accepted: Self.at(0))).0 == .spawn)
    #expect(schedule.look(areBlocked: true, now: Self.at(4999)).0 == .none)
    #expect(schedule.look(areBlocked: true, now: Self.at(5000)).0 == .spawn)
  }

  @Test("While threads are refused, the stream that was held last makes way")
  func eviction() {
    var schedule = Schedule(limits: .init(running: 1, held: 5))
    var workers: [Schedule.WorkerID] = []
    for time in 0..<3 as Range<Int64> {
      let (action, _) = schedule.submitted(TestCall(isStream: true, accepted: Self.at(time)))
      #expect(action == .spawn)
      let worker = schedule.entered()
      #expect(Self.isRun(schedule.next(worker) { Self.at(time) }))
      #expect(schedule.held(worker) { Self.at(time) } == .none)
      workers.append(worker)
    }
    #expect(schedule.submitted(TestCall(accepted: Self.at(3))).0 == .spawn)
    _ = schedule.spawnFailed(now: Self.at(4))
    #expect(schedule.look(areBlocked: true, now: Self.at(5)).0 == .evict(workers[2]))
    // One is enough, as one may run.
    #expect(schedule.look(areBlocked: true, now: Self.at(6)).0 == .none)
    schedule.released(workers[2])
    schedule.finished(TestCall(isStream: true, accepted: Self.at(2)))
    #expect(Self.isRun(schedule.next(workers[2]) { Self.at(7) }))
    #expect(schedule.counts == (awake: 1, idle: 0, held: 2))
    // The next stream must not take the thread that was freed for others.
    #expect(schedule.submitted(TestCall(isStream: true, accepted: Self.at(8))).0 == .none)
    #expect(!schedule.hasWaiting)
    // It waits until a thread is free, or another one can be had.
    #expect(schedule.look(areBlocked: true, now: Self.at(20)) == (.none, .milliseconds(2)))
    guard case .sleep = schedule.next(workers[2], now: { Self.at(21) }) else {
      Issue.record("The stream may not run yet")
      return
    }
    #expect(schedule.look(areBlocked: true, now: Self.at(22)).0 == .wake(workers[2]))
    #expect(Self.isRun(schedule.next(workers[2]) { Self.at(22) }))
  }

  @Test("Any order of events", arguments: 0..<100 as Range<UInt64>)
  func anyOrder(seed: UInt64) {
    var simulation = WorkerSimulation(seed: seed)
    for _ in 0..<10_000 {
      simulation.step()
      if let fault = simulation.fault {
        Issue.record("seed \(seed): \(fault)")
        return
      }
    }
    simulation.settle()
    if let fault = simulation.fault { Issue.record("seed \(seed), at the end: \(fault)") }
  }
}
