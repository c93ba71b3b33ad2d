package import GRPCEngineStatistics
internal import NIOCore
internal import Synchronization

/// What the peers of all connections of a server make it hold, together.
package final class MemoryPool: Sendable {
  /// What one connection holds of it. Read by others, which look for the one that costs the most.
  package final class Holding: Sendable {
    /// Up to this any peer may hold at any time: what streams may send before somebody takes it.
    private static let fair = 64 << 10

    private let bytes = Atomic<Int>(0)
    /// In nanoseconds of the clock of event loops.
    private let stalled = Atomic<UInt64>(0)
    package init() {}

    package var value: Int { self.bytes.load(ordering: .relaxed) }

    /// What it has cost: its bytes times the square of the time since some were given back or they were few.
    /// So memory that comes and goes costs little, however much it is, and peers that fill the pool with little
    /// each cost more than a large message that passes. Past ten seconds the bytes decide alone.
    func cost(now: NIODeadline) -> Double {
      let since = NIODeadline.uptimeNanoseconds(self.stalled.load(ordering: .relaxed))
      let seconds = min(max(0.001, Double((now - since).nanoseconds) / 1e9), 10)
      return Double(max(0, self.value)) * seconds * seconds
    }

    fileprivate func add(_ change: Int, hasGiven: Bool, now: NIODeadline) {
      let held = self.bytes.wrappingAdd(change, ordering: .relaxed).oldValue
      if hasGiven || held < Self.fair {
        self.stalled.store(now.uptimeNanoseconds, ordering: .relaxed)
      }
    }
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

  /// Whether the others hold next to nothing.
  func isAlone(_ holding: Holding) -> Bool { self.held - holding.value <= self.limit / 8 }

  /// Counts what a connection holds more, or less, than before.
  ///
  /// - Parameter hasGiven: whether something was given back since the last time, or will be: it was a
  ///   part of a request that is whole now.
  /// - Returns: whether too much is held because of that.
  func add(_ change: Int, to holding: Holding, hasGiven: Bool, now: NIODeadline) -> Bool {
    holding.add(change, hasGiven: hasGiven, now: now)
    self.gauge.add(change)
    let held = self.total.wrappingAdd(change, ordering: .relaxed).newValue
    return change > 0 && held > self.limit
  }
}
