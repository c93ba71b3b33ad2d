internal import GRPCEngineLocks
package import GRPCEngineStatistics
package import GRPCEngineWire
internal import NIOCore
internal import Synchronization

/// The connections of a server, so that it can drain and close them.
package final class ConnectionRegistry: Sendable {
  private struct State {
    var connections: [ObjectIdentifier: Entry] = [:]
    /// Connections that have been taken in and are not among them yet, and intakes that may bring
    /// more: those come even though the server drains, since their clients know nothing of that.
    var arrivals = 0
    var isDraining = false
    var isCancelled = false
    /// What cuts arrivals short.
    var cuts: [Int: @Sendable () -> Void] = [:]
    var lastCut = 0
    var whenEmpty: [@Sendable () -> Void] = []

    var mayInsert: Bool { !self.isDraining || (self.arrivals > 0 && !self.isCancelled) }

    /// What to call if nothing is left.
    mutating func takeCallbacks() -> [@Sendable () -> Void] {
      guard self.isDraining, self.connections.isEmpty, self.arrivals == 0 else { return [] }
      defer { self.whenEmpty = [] }
      return self.whenEmpty
    }
  }

  /// A handler is touched on its event loop only; here it is just carried there.
  private struct Entry: @unchecked Sendable {
    let connection: ConnectionHandler
    let eventLoop: any EventLoop
  }

  package let statistics: ServerStatistics
  /// What their peers make the server hold.
  package let memory: MemoryPool
  private let state = Locked(State())
  /// Calls that were ended give back what they held after a moment.
  private static let reliefPause = TimeAmount.milliseconds(5)
  private static let fruitlessPause: TimeAmount = .milliseconds(100)

  /// - Parameter memory: bytes that all connections may hold together.
  package init(
    statistics: ServerStatistics = ServerStatistics(),
    memory: Int = TransportConfiguration.Memory().pool
  ) {
    self.statistics = statistics
    self.memory = MemoryPool(limit: memory, gauge: statistics.slot[.heldBytes])
  }

  package var isDraining: Bool { self.state.withLock { $0.isDraining } }
  package var count: Int { self.state.withLock { $0.connections.count } }

  /// - Returns: whether the connection may be served.
  func insert(_ connection: ConnectionHandler) -> Bool {
    let isServed = self.state.withLock { state in
      guard state.mayInsert else { return false }
      let entry = Entry(connection: connection, eventLoop: connection.eventLoop)
      state.connections[ObjectIdentifier(connection)] = entry
      return true
    }
    if isServed {
      self.statistics.slot[.connectionsAccepted].add()
      self.statistics.slot[.connections].add()
    }
    return isServed
  }

  func remove(_ connection: ConnectionHandler) {
    let callbacks = self.state.withLock { state -> [@Sendable () -> Void] in
      guard state.connections.removeValue(forKey: ObjectIdentifier(connection)) != nil else {
        return []
      }
      self.statistics.slot[.connections].subtract()
      return state.takeCallbacks()
    }
    for callback in callbacks { callback() }
  }

  /// A connection is on its way, or an intake may bring some: a drain waits for `arrivalEnded`.
  /// May be called from any thread.
  package func arrivalBegan() {
    self.state.withLock { $0.arrivals += 1 }
  }

  /// The same for one that may take long.
  ///
  /// - Parameter cut: called once, on any thread, when every connection is to be closed, unless it has
  ///   ended; it must not call back.
  /// - Returns: what `arrivalEnded` is to be given.
  func arrivalBegan(cut: @escaping @Sendable () -> Void) -> Int {
    let (id, isCancelled) = self.state.withLock { state in
      state.arrivals += 1
      state.lastCut += 1
      if !state.isCancelled { state.cuts[state.lastCut] = cut }
      return (state.lastCut, state.isCancelled)
    }
    if isCancelled { cut() }
    return id
  }

  func arrivalEnded(_ id: Int) {
    self.state.withLock { $0.cuts[id] = nil }
    self.arrivalEnded()
  }

  /// It has come, or will not.
  package func arrivalEnded() {
    let callbacks = self.state.withLock { state -> [@Sendable () -> Void] in
      state.arrivals -= 1
      return state.takeCallbacks()
    }
    for callback in callbacks { callback() }
  }

  /// Drains every connection. May be called from any thread.
  ///
  /// - Parameter whenEmpty: called once, on any thread, when no connection is left and none is on
  ///   its way.
  package func drain(whenEmpty: @escaping @Sendable () -> Void) {
    let (entries, callbacks) = self.state.withLock { state in
      state.isDraining = true
      state.whenEmpty.append(whenEmpty)
      return (Array(state.connections.values), state.takeCallbacks())
    }
    for callback in callbacks { callback() }
    for entry in entries { entry.eventLoop.execute { entry.connection.drain() } }
  }

  /// Has connections give back half of the memory that they hold, until some is free. May be called from any
  /// thread.
  ///
  /// It goes by rounds: in each those are asked that have cost the most, and the next one is when there has been
  /// time for calls to end, as long as somebody gives. So who costs little is asked once others hold little.
  /// Nobody is who holds less than an eighth of the average: together they hold less than an eighth.
  func relieve(now: NIODeadline) {
    guard self.memory.beginRelief() else { return }
    self.beginRound(now: now)
  }

  private func beginRound(now: NIODeadline) {
    let entries = self.state.withLock { Array($0.connections.values) }
    let least = max(1, self.memory.held / max(1, entries.count) / 8)
    let holders = entries.filter { $0.connection.holding.value >= least }
      .map { Holder(entry: $0, cost: $0.connection.holding.cost(now: now)) }
      .sorted { $0.cost > $1.cost }
    let round = Round(least: least, floor: (holders.first?.cost ?? 0) / 4)
    self.ask(holders[...], in: round)
  }

  private struct Holder {
    let entry: Entry
    let cost: Double
  }

  private struct Round {
    /// Who holds less by now is not asked.
    let least: Int
    /// Who has cost less is asked only where nobody else has given.
    let floor: Double
    var hasGiven = false

    func includes(_ holder: Holder) -> Bool { !self.hasGiven || holder.cost >= self.floor }
  }

  /// - Parameter holders: who is to be asked, the first one now.
  private func ask(_ holders: ArraySlice<Holder>, in round: Round) {
    guard let next = holders.first?.entry else { return self.memory.endRelief() }
    let rest = holders.dropFirst()
    next.eventLoop.execute {
      var round = round
      // Much may have been given back since this was asked for.
      if !self.memory.hasRoom, next.connection.relieve(round.least) { round.hasGiven = true }
      if !self.memory.hasRoom, let second = rest.first, round.includes(second) {
        return self.ask(rest, in: round)
      }
      let hasGiven = round.hasGiven
      // Where nobody could give, and none has, somebody may later.
      let pause = hasGiven || self.memory.hasRoom ? Self.reliefPause : Self.fruitlessPause
      next.eventLoop.assumeIsolated().scheduleTask(in: pause) {
        let now = next.eventLoop.now
        switch self.memory.afterRound(hasGiven: hasGiven) {
        case .anotherRound: self.beginRound(now: now)
        case .anotherRelief:
          self.memory.endRelief()
          self.relieve(now: now)
        case .nothing: self.memory.endRelief()
        }
      }
    }
  }

  /// Knows when the last of several has been visited.
  private final class Visit: Sendable {
    private let left: Atomic<Int>
    private let whenDone: @Sendable () -> Void

    init(count: Int, whenDone: @escaping @Sendable () -> Void) {
      self.left = Atomic(count)
      self.whenDone = whenDone
    }

    func leave() {
      let left = self.left.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue
      if left == 0 { self.whenDone() }
    }
  }

  /// Looks at every stream that somebody receives, each on its event loop. May be called from any
  /// thread.
  ///
  /// - Parameters:
  ///   - look: called on event loops, several at once.
  ///   - whenDone: called once, on any thread, when all have been looked at.
  package func visit(
    _ look: @escaping @Sendable (any StreamReceiver) -> Void,
    whenDone: @escaping @Sendable () -> Void
  ) {
    let entries = self.state.withLock { Array($0.connections.values) }
    guard !entries.isEmpty else { return whenDone() }
    let visit = Visit(count: entries.count, whenDone: whenDone)
    for entry in entries {
      entry.eventLoop.execute {
        entry.connection.forEachReceiver(look)
        visit.leave()
      }
    }
  }

  /// Ends every call with `status` and closes every connection. May be called from any thread.
  package func cancel(_ status: Status) {
    let (entries, cuts) = self.state.withLock { state in
      state.isCancelled = true
      defer { state.cuts = [:] }
      return (Array(state.connections.values), Array(state.cuts.values))
    }
    for cut in cuts { cut() }
    for entry in entries { entry.eventLoop.execute { entry.connection.cancel(status) } }
  }
}
