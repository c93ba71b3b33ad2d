internal import GRPCEngineLocks
internal import GRPCEngineWire
package import NIOCore

/// The health of a server: the status that was set for each service, and whether the server is
/// ready. What is told to a client follows from both: while the server is not ready, every service
/// is NOT_SERVING.
///
/// All of it may be used from any thread; nothing of it takes the GIL or waits for long.
package final class HealthBoard: Sendable {
  private struct State {
    /// "" is the server as a whole.
    var statuses: [ExactString: ServingStatus] = ["": .serving]
    var readiness = Readiness()
    var isDraining = false
    var watchers: [ExactString: [ObjectIdentifier: HealthWatcher]] = [:]
    var watcherCount = 0
    /// What the watchers were told last.
    var wasReady = true
    /// What the observers were told last.
    var lastProblem: Readiness.Problem?
    var observers: [@Sendable (HealthBoard) -> Void] = []
    var queue: Queue?
  }

  /// Where calls wait.
  private struct Queue: Sendable {
    let limit: TimeAmount
    let oldestWait: @Sendable () -> TimeAmount?
  }

  /// How often the lease and the queue are looked at.
  package static let lookInterval = TimeAmount.milliseconds(200)
  /// Watch streams at a time. They do not count against `maximum_concurrent_rpcs`, so something
  /// else must bound what strangers can make of them.
  package let maximumWatchers: Int

  private let now: @Sendable () -> NIODeadline
  private let state = Locked(State())

  /// - Parameter now: the clock.
  package init(
    maximumWatchers: Int = 10_000,
    now: @escaping @Sendable () -> NIODeadline = { .now() }
  ) {
    self.maximumWatchers = maximumWatchers
    self.now = now
  }

  // MARK: What is told

  /// Whether the server as a whole is SERVING.
  package var isReady: Bool { self.problem == nil }

  /// Why it is not; `nil` when it is.
  package var problem: Readiness.Problem? { self.state.withLock { self.problem($0) } }

  private func problem(_ state: borrowing State) -> Readiness.Problem? {
    if let problem = state.readiness.problem(at: self.now()) { return problem }
    if state.statuses[""] == .serving { return nil }
    return Readiness.Problem(cause: .status, text: "the server's own status is not SERVING")
  }

  /// What a client is told of a service; `nil` for one that is not known.
  package func status(of service: String) -> ServingStatus? {
    self.state.withLock { state in
      guard let status = state.statuses[ExactString(service)] else { return nil }
      return state.readiness.problem(at: self.now()) == nil ? status : .notServing
    }
  }

  /// The same for every service that is known.
  package var statuses: [String: ServingStatus] {
    self.state.withLock { state in
      let isReady = state.readiness.problem(at: self.now()) == nil
      let told = state.statuses.map { ($0.string, isReady ? $1 : .notServing) }
      return Dictionary(told) { first, _ in first }
    }
  }

  /// Calls `callback` on each change of `problem`, on whichever thread brings it about. A lease
  /// that runs out and a queue that is stuck are noticed within `lookInterval`.
  ///
  /// - Parameter callback: is given the board, which it must not hold: that holds it.
  package func onChange(_ callback: @escaping @Sendable (HealthBoard) -> Void) {
    self.state.withLock { $0.observers.append(callback) }
  }

  // MARK: What decides it

  /// Makes services known, as SERVING; those that are known keep their status.
  package func add(_ services: [String]) {
    for service in services {
      self.change(service) { state in
        if state.statuses[ExactString(service)] == nil {
          state.statuses[ExactString(service)] = .serving
        }
      }
    }
  }

  /// Sets the status of a service, known before or not.
  package func set(_ status: ServingStatus, for service: String) {
    self.change(service) { $0.statuses[ExactString(service)] = status }
  }

  /// The readiness checks have passed, or there are none.
  ///
  /// - Parameter lease: after which time the server is not ready unless this is called again; `nil`
  ///   for never.
  package func setReady(for lease: TimeAmount?) {
    let until = lease.map { self.now() + $0 }
    self.change { $0.readiness.checksPassed(until: until) }
  }

  /// A readiness check failed, or none has passed yet.
  package func setNotReady(_ reason: String) {
    self.change { $0.readiness.checksFailed(reason) }
  }

  /// The server is about to stop: it is not ready from now on, and serves as ever.
  package func announceShutdown() { self.change { $0.readiness.shutDown() } }

  /// The server stops: streams that watch hear of it, and end.
  ///
  /// - Parameter isReplaced: whether other processes go on with the address. A probe that comes to
  ///   this one by then asks for what they do, so it is not told that nobody serves.
  func startDraining(isReplaced: Bool) {
    self.change { state in
      if !isReplaced { state.readiness.shutDown() }
      state.isDraining = true
    }
    let watchers = self.state.withLock { $0.watchers.values.flatMap(\.values) }
    for watcher in watchers { watcher.end() }
  }

  /// Has the queue looked at from the server's start on.
  ///
  /// - Parameters:
  ///   - limit: how long a call may wait there while the server counts as ready.
  ///   - oldestWait: how long the oldest one has waited, `nil` when none waits. Called on an event
  ///     loop; must not block.
  package func observeQueue(
    limit: TimeAmount,
    oldestWait: @escaping @Sendable () -> TimeAmount?
  ) {
    self.state.withLock { $0.queue = Queue(limit: limit, oldestWait: oldestWait) }
  }

  /// Looks at lease and queue from now on, until the event loop ends.
  func start(on eventLoop: any EventLoop) {
    eventLoop.scheduleRepeatedTask(
      initialDelay: Self.lookInterval,
      delay: Self.lookInterval
    ) { _ in self.look() }
  }

  /// Looks at lease and queue once.
  package func look() {
    let queue = self.state.withLock { $0.queue }
    let wait = queue?.oldestWait()
    self.change { state in
      if let queue { state.readiness.queueWaits(wait, limit: queue.limit) }
    }
  }

  // MARK: Watchers

  enum Admission { case watches, watchesNoMore, refused }

  /// Tells `watcher` of every change from now on, until `remove`.
  ///
  /// - Returns: `watchesNoMore` when the server stops: there will be no change.
  func add(_ watcher: HealthWatcher) -> Admission {
    self.state.withLock { state in
      if state.isDraining { return .watchesNoMore }
      guard state.watcherCount < self.maximumWatchers else { return .refused }
      state.watcherCount += 1
      state.watchers[ExactString(watcher.service), default: [:]][ObjectIdentifier(watcher)] =
        watcher
      return .watches
    }
  }

  func remove(_ watcher: HealthWatcher) {
    self.state.withLock { state in
      let service = watcher.service
      guard
        state.watchers[ExactString(service)]?.removeValue(forKey: ObjectIdentifier(watcher)) != nil
      else { return }
      state.watcherCount -= 1
      if state.watchers[ExactString(service)]?.isEmpty == true {
        state.watchers[ExactString(service)] = nil
      }
    }
  }

  /// Watch streams that are open.
  package var watcherCount: Int { self.state.withLock { $0.watcherCount } }

  // MARK: Changes

  /// Changes the state, and tells whoever has to hear of it, outside the mutex.
  ///
  /// - Parameter service: the one whose own status changes.
  private func change(_ service: String? = nil, _ body: (inout State) -> Void) {
    let (watchers, observers) = self.state.withLock {
      state -> ([HealthWatcher], [@Sendable (HealthBoard) -> Void]) in
      body(&state)
      var watchers: [HealthWatcher] = []
      let isReady = state.readiness.problem(at: self.now()) == nil
      if isReady != state.wasReady {
        state.wasReady = isReady
        watchers = state.watchers.values.flatMap(\.values)
      } else if let service, let own = state.watchers[ExactString(service)] {
        watchers = Array(own.values)
      }
      let problem = self.problem(state)
      guard problem != state.lastProblem else { return (watchers, []) }
      state.lastProblem = problem
      return (watchers, state.observers)
    }
    for watcher in watchers { watcher.update(from: self) }
    for observer in observers { observer(self) }
  }
}
