/// Finds a stream's place by its number: a hash table with linear probing.
///
/// A `Dictionary` would do, and costs a call several hundred instructions more.
struct StreamIndex {
  private struct Entry {
    /// 0 where there is none.
    var id: Int32 = 0
    var place: Int32 = 0
  }

  private static let smallest = 16

  private var entries: ContiguousArray<Entry> = []
  private(set) var count = 0
  /// Odd, and of this table alone, so that no peer knows which numbers get into each other's way.
  private let multiplier = UInt64.random(in: 0...UInt64.max) | 1

  var isEmpty: Bool { self.count == 0 }

  /// - Parameter id: above 0 and below 2^31.
  func place(of id: Int) -> Int? {
    guard !self.entries.isEmpty else { return nil }
    var index = self.home(of: id)
    while self.entries[index].id != 0 {
      if self.entries[index].id == id { return Int(self.entries[index].place) }
      index = self.after(index)
    }
    return nil
  }

  /// - Parameter id: one that is not there.
  mutating func insert(_ id: Int, at place: Int) {
    if self.entries.count <= 2 * self.count { self.grow() }
    self.put(Entry(id: Int32(truncatingIfNeeded: id), place: Int32(truncatingIfNeeded: place)))
    self.count += 1
  }

  mutating func remove(_ id: Int) {
    guard !self.entries.isEmpty else { return }
    var gap = self.home(of: id)
    while self.entries[gap].id != id {
      guard self.entries[gap].id != 0 else { return }
      gap = self.after(gap)
    }
    self.count -= 1
    // What stands behind moves up, as far as that does not take it past its home.
    var index = self.after(gap)
    while self.entries[index].id != 0 {
      let mask = self.entries.count - 1
      let distance = (index &- self.home(of: Int(self.entries[index].id))) & mask
      if distance >= (index &- gap) & mask {
        self.entries[gap] = self.entries[index]
        gap = index
      }
      index = self.after(index)
    }
    self.entries[gap] = Entry()
  }

  /// Calls `body` with each stream's place.
  func forEachPlace(_ body: (Int) -> Void) {
    for entry in self.entries where entry.id != 0 { body(Int(entry.place)) }
  }

  private mutating func grow() {
    let old = self.entries
    let size = max(Self.smallest, 2 * old.count)
    self.entries = ContiguousArray(repeating: Entry(), count: size)
    for entry in old where entry.id != 0 { self.put(entry) }
  }

  private mutating func put(_ entry: Entry) {
    var index = self.home(of: Int(entry.id))
    while self.entries[index].id != 0 { index = self.after(index) }
    self.entries[index] = entry
  }

  private func after(_ index: Int) -> Int { (index + 1) & (self.entries.count - 1) }

  private func home(of id: Int) -> Int {
    let hash = UInt64(truncatingIfNeeded: id) &* self.multiplier
    return Int(truncatingIfNeeded: hash >> 32) & (self.entries.count - 1)
  }
}
