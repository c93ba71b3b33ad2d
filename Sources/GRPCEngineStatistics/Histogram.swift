/// Counts of values by size, as Prometheus has them: a bucket holds what is at most its bound, and
/// the last one the rest.
public struct Histogram: Sendable {
  /// Upper bounds of durations, in nanoseconds: 100 µs to a minute.
  public static let durations: [UInt64] = [
    100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000,
    50_000_000, 100_000_000, 250_000_000, 500_000_000, 1_000_000_000, 2_500_000_000,
    5_000_000_000, 10_000_000_000, 30_000_000_000, 60_000_000_000,
  ]
  /// Upper bounds of messages, in bytes: 64 B to 16 MiB.
  public static let sizes: [UInt64] = [
    64, 256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24,
  ]

  public let bounds: [UInt64]
  private let first: StatisticsCellRow

  /// - Parameter address: where the buckets are, and after them the sum.
  init(_ address: UnsafeMutableRawPointer, bounds: [UInt64]) {
    self.bounds = bounds
    self.first = StatisticsCellRow(address)
  }

  /// How many cells a histogram takes.
  static func length(_ bounds: [UInt64]) -> Int { bounds.count + 2 }

  /// Counts a value without adding it to the sum, which whoever counts many adds once.
  public func count(_ value: UInt64) {
    self.first[self.bucket(of: value)].add()
  }

  public func record(_ value: UInt64) {
    self.count(value)
    self.addToSum(value)
  }

  public func addToSum(_ value: UInt64) {
    self.first[self.bounds.count + 1].add(Int(truncatingIfNeeded: value))
  }

  private func bucket(of value: UInt64) -> Int {
    var index = 0
    while index < self.bounds.count, value > self.bounds[index] { index += 1 }
    return index
  }

  public var buckets: [UInt64] { (0...self.bounds.count).map { self.first[$0].value } }
  public var sum: UInt64 { self.first[self.bounds.count + 1].value }
}

/// Cells that lie side by side.
struct StatisticsCellRow: @unchecked Sendable {
  // Safe to share: only where the cells are.
  private let base: UnsafeMutableRawPointer

  init(_ base: UnsafeMutableRawPointer) { self.base = base }

  subscript(_ index: Int) -> StatisticsCell {
    StatisticsCell(self.base + index * StatisticsSlot.cellSize)
  }
}
