internal import Synchronization

/// One number in a board's memory, which several threads and processes may change at once.
///
/// Everything is relaxed: the numbers are read for people and for placing connections, and order
/// nothing.
public struct StatisticsCell: @unchecked Sendable {
  // Safe to share: an atomic, in memory that its board keeps mapped for the process's life.
  private let pointer: UnsafeMutablePointer<Atomic<UInt64>>

  init(_ address: UnsafeMutableRawPointer) {
    // An Atomic<UInt64> is its eight bytes, and mapped memory starts as zeros.
    self.pointer = address.assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  public var value: UInt64 { self.pointer.pointee.load(ordering: .relaxed) }

  public func add(_ amount: Int = 1) {
    self.pointer.pointee.wrappingAdd(UInt64(truncatingIfNeeded: amount), ordering: .relaxed)
  }

  public func subtract(_ amount: Int = 1) {
    self.pointer.pointee.wrappingSubtract(UInt64(truncatingIfNeeded: amount), ordering: .relaxed)
  }

  public func set(_ value: UInt64) {
    self.pointer.pointee.store(value, ordering: .relaxed)
  }

  /// Stores so that whoever reads the value by `acquire` sees everything written before.
  func publish(_ value: UInt64) {
    self.pointer.pointee.store(value, ordering: .releasing)
  }

  /// Stores `desired` where the value is `expected`, as `publish` and `acquire` do.
  ///
  /// - Returns: whether it was.
  func replace(_ expected: UInt64, by desired: UInt64) -> Bool {
    self.pointer.pointee.compareExchange(
      expected: expected,
      desired: desired,
      ordering: .acquiringAndReleasing
    ).exchanged
  }

  func acquire() -> UInt64 { self.pointer.pointee.load(ordering: .acquiring) }
}
