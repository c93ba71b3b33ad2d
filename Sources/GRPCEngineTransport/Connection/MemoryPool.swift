package import GRPCEngineStatistics
package import NIOCore
internal import Synchronization

/// What the peers of all connections of a server make it hold, together.
package final class MemoryPool: Sendable {
  /// What one connection holds of it. Read by others, which look for the one that costs the most.
  package final class Holding: Sendable {
    private let bytes = Atomic<Int>(0)
    /// When the bytes came, on the average: in nanoseconds of the clock of event loops.
    private let since = Atomic<UInt64>(0)
    package init() {}

    package var value: Int { self.bytes.load(ordering: .relaxed) }

    /// What it has cost: its bytes times the square of their age. So memory that comes and goes costs little,
    /// however much it is, and peers that fill the pool with little each cost more than a large message that
    /// passes. Past ten seconds the bytes decide alone.
    package func cost(now: NIODeadline) -> Double {
      let since = NIODeadline.uptimeNanoseconds(self.since.load(ordering: .relaxed))
      let seconds = min(max(0.001, Double((now - since).nanoseconds) / 1e9), 10)
      return Double(max(0, self.value)) * seconds * seconds
    }

    /// By the connection itself only, on its event loop.
    fileprivate func add(_ change: Int, _ flow: Flow, now: NIODeadline) {
      let before = max(0, self.bytes.wrappingAdd(change, ordering: .relaxed).oldValue)
      // Whatever moves lowers the average by its share: at a steady pace it comes to the time that a byte stays.
      // So who lets a little come and go beside much that stays, has much that stays.
      let moved = Double(flow.come + flow.given) / Double(max(1, before + flow.come))
      let since = self.since.load(ordering: .relaxed)
      let age = now.uptimeNanoseconds > since ? now.uptimeNanoseconds - since : 0
      let passed = min(UInt64(Double(age) * min(1, moved)), age)
      self.since.store(since + passed, ordering: .relaxed)
    }
  }

  /// What has come and what was given back since the last time, in bytes. What was taken from a peer, it has not
  /// given.
  package struct Flow {
    var come = 0
    var given = 0

    package init(come: Int = 0) { self.come = come }
  }

  private let limit: Int
  private let gauge: StatisticsCell
  private let total = Atomic<Int>(0)
  private let isRelieved = Atomic<Bool>(false)

  /// - Parameter limit: bytes; `Int.max` for none.
  package init(limit: Int, gauge: StatisticsCell) {
    self.limit = limit
    self.gauge = gauge
  }

  package var held: Int { self.total.load(ordering: .relaxed) }
  package var isFull: Bool { self.held > self.limit }
  /// Whether a part is free, so that what comes next need not go at once.
  var hasRoom: Bool { self.held <= self.limit / 8 * 7 }

  /// Whether nobody else looks for memory at the moment.
  func beginRelief() -> Bool { !self.isRelieved.exchange(true, ordering: .acquiringAndReleasing) }
  func endRelief() { self.isRelieved.store(false, ordering: .releasing) }

  package enum AfterRound { case anotherRound, anotherRelief, nothing }

  /// What is to follow when connections were asked to give, and had time for it.
  package func afterRound(hasGiven: Bool) -> AfterRound {
    if hasGiven, !self.hasRoom { return .anotherRound }
    // Those who asked meanwhile were not heard, and wait for each other by now.
    return self.isFull ? .anotherRelief : .nothing
  }

  /// Whether the others hold next to nothing.
  func isAlone(_ holding: Holding) -> Bool { self.held - holding.value <= self.limit / 8 }

  /// Counts what a connection holds more, or less, than before.
  ///
  /// - Returns: whether too much is held because of that.
  package func add(
    _ change: Int,
    to holding: Holding,
    _ flow: Flow,
    now: NIODeadline
  ) -> Bool {
    holding.add(change, flow, now: now)
    self.gauge.add(change)
    let held = self.total.wrappingAdd(change, ordering: .relaxed).newValue
    return change > 0 && held > self.limit
  }
}
