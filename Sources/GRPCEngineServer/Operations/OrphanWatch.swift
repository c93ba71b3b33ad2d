/// When a worker process whose parent has ended is to be killed.
///
/// Python drains such a process. One in which Python does not run, as something keeps the GIL, would
/// stay for ever, with the addresses that it has; nobody else is left to end it.
///
/// A value without I/O: it is told what is seen, and the time.
struct OrphanWatch {
  /// Milliseconds for which Python may not run in an orphan.
  static let patience: UInt64 = 5_000

  private let parent: Int32
  private var orphanedAt: UInt64?

  /// - Parameter parent: the process's parent at its beginning.
  init(parent: Int32) { self.parent = parent }

  /// - Parameters:
  ///   - parent: the process's parent now.
  ///   - pulse: when Python last ran; 0 when nobody tells.
  ///   - now: milliseconds of the same clock as `pulse`.
  /// - Returns: whether the process is to be killed.
  mutating func look(parent: Int32, pulse: UInt64, now: UInt64) -> Bool {
    guard pulse != 0, parent != self.parent else { return false }
    let orphanedAt = self.orphanedAt ?? now
    self.orphanedAt = orphanedAt
    let alive = max(orphanedAt, pulse)
    return now > alive && now - alive >= Self.patience
  }
}
