internal import NIOCore

/// The fields that a connection has learned (RFC 7541 section 2.3.2), the newest first.
struct DynamicTable {
  private var fields = CircularBuffer<HeaderField>()
  private var size = 0
  /// How large it may be, in bytes by section 4.1.
  private(set) var maximum: Int

  init(maximum: Int) { self.maximum = maximum }

  /// The field with an index of the address space of section 2.3.3, which begins with the static table.
  func field(_ index: Int) throws(HPACKError) -> HeaderField {
    let known = StaticTable.fields
    if index > 0, index <= known.count { return known[index - 1] }
    let offset = index - known.count - 1
    guard offset >= 0, offset < self.fields.count else { throw .badIndex }
    return self.fields[self.fields.index(self.fields.startIndex, offsetBy: offset)]
  }

  /// Adds a field; one that is larger than the table empties it (section 4.4).
  mutating func insert(_ field: HeaderField) {
    self.evict(to: self.maximum - field.size)
    guard field.size <= self.maximum else { return }
    self.fields.prepend(field)
    self.size += field.size
  }

  mutating func resize(to maximum: Int) {
    self.maximum = maximum
    self.evict(to: maximum)
  }

  private mutating func evict(to size: Int) {
    while self.size > size, let oldest = self.fields.popLast() { self.size -= oldest.size }
  }
}
