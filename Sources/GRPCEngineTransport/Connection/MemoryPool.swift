package import GRPCEngineStatistics
internal import Synchronization

/// What the peers of all connections of a server make it hold, together.
package final class MemoryPool: Sendable {
  /// What one connection holds of it. Read by others, which look for the one that holds the most.
  package final class Holding: Sendable {
    private let bytes = Atomic<Int>(0)
    package init() {}

    package var value: Int { self.bytes.load(ordering: .relaxed) }
    fileprivate func add(_ change: Int) { self.bytes.wrappingAdd(change, ordering: .relaxed) }
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

  /// Counts what a connection holds more, or less, than before.
  ///
  /// - Returns: whether too much is held because of that.
  func add(_ change: Int, to holding: Holding) -> Bool {
    holding.add(change)
    self.gauge.add(change)
    let held = self.total.wrappingAdd(change, ordering: .relaxed).newValue
    return change > 0 && held > self.limit
  }
}
