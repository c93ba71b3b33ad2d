internal import Synchronization

/// How many calls run at once, and how many may (`maximum_concurrent_rpcs`).
package final class Admission: Sendable {
  /// The most calls at a time; `nil` for no limit.
  package let limit: Int?
  private let active = Atomic<Int>(0)
  private let admitted = Atomic<Int>(0)

  package init(limit: Int?) { self.limit = limit }

  /// Calls admitted and not released: those whose servicer waits or runs.
  package var activeCalls: Int { self.active.load(ordering: .relaxed) }
  /// Calls admitted since the start.
  package var admittedCalls: Int { self.admitted.load(ordering: .relaxed) }

  func admit() -> Bool {
    let count = self.active.wrappingAdd(1, ordering: .relaxed).newValue
    if let limit = self.limit, count > limit {
      self.active.wrappingSubtract(1, ordering: .relaxed)
      return false
    }
    self.admitted.wrappingAdd(1, ordering: .relaxed)
    return true
  }

  func release() { self.active.wrappingSubtract(1, ordering: .relaxed) }
}
