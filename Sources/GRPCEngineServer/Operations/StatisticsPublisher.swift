internal import GRPCEngineLocks
internal import GRPCEngineStatistics
internal import GRPCEngineTransport
internal import Glibc
internal import NIOCore

/// How the threads that run handlers fare, as whoever runs them tells it.
package struct WorkerFigures: Sendable {
  package var queued: Int
  package var busy: Int
  package var idle: Int
  package var held: Int

  package init(queued: Int, busy: Int, idle: Int, held: Int) {
    self.queued = queued
    self.busy = busy
    self.idle = idle
    self.held = held
  }
}

/// Writes, some times a second, what others read of this process: that it lives, how its threads
/// fare, and, while somebody watches, the calls that run. And reads what its parent has written, since
/// Python may not get to hear its messages.
final class StatisticsPublisher: Sendable {
  private static let period = TimeAmount.milliseconds(250)

  private let statistics: ServerStatistics
  private let connections: ConnectionRegistry
  private let health: HealthBoard
  private let orphanWatch = Locked(OrphanWatch(parent: getppid()))
  private let workers: @Sendable () -> WorkerFigures?
  private let task = Locked<RepeatedTask?>(nil)

  /// - Parameter workers: called on an event loop; must not block.
  init(
    statistics: ServerStatistics,
    connections: ConnectionRegistry,
    health: HealthBoard,
    workers: @escaping @Sendable () -> WorkerFigures?
  ) {
    self.statistics = statistics
    self.connections = connections
    self.health = health
    self.workers = workers
  }

  func start(on eventLoop: any EventLoop) {
    let task = eventLoop.scheduleRepeatedTask(initialDelay: .zero, delay: Self.period) { _ in
      self.publish()
    }
    self.task.withLock { $0 = task }
  }

  func stop() {
    self.task.withLock { $0 }?.cancel()
  }

  private func publish() {
    let slot = self.statistics.slot
    slot[.heartbeat].set(ServerStatistics.now)
    if let workers = self.workers() {
      slot[.queued].set(UInt64(workers.queued))
      slot[.busyThreads].set(UInt64(workers.busy))
      slot[.idleThreads].set(UInt64(workers.idle))
      slot[.heldThreads].set(UInt64(workers.held))
    }
    self.hearParent(slot)
    if self.statistics.board[.watchedUntil].value > ServerStatistics.now { self.publishCalls() }
  }

  private func hearParent(_ slot: StatisticsSlot) {
    if slot[.leaving].value != 0 { self.health.announceShutdown() }
    let mustEnd = self.orphanWatch.withLock {
      $0.look(parent: getppid(), pulse: slot[.pulse].value, now: ServerStatistics.now)
    }
    if mustEnd { kill(getpid(), SIGKILL) }
  }

  private func publishCalls() {
    let calls = RunningCalls()
    self.connections.visit { receiver in
      if let call = receiver as? Call, call.isActive { calls.append(call.running) }
    } whenDone: {
      // The oldest first: those that do not fit are the ones that matter least.
      self.statistics.slot.publish(calls.taken().sorted { $0.accepted < $1.accepted })
    }
  }

  private final class RunningCalls: Sendable {
    private let calls = Locked<[RunningCall]>([])

    func append(_ call: RunningCall) { self.calls.withLock { $0.append(call) } }
    func taken() -> [RunningCall] { self.calls.withLock { $0 } }
  }
}
