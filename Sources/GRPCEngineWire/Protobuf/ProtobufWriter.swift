/// Bytes in protobuf's wire format, as they are written.
///
/// Belongs to whoever writes; it is not shared between threads.
/// https://protobuf.dev/programming-guides/encoding/
final class WireBuffer {
  private(set) var count = 0
  private var capacity: Int
  private var start: UnsafeMutableRawPointer

  init(capacity: Int = 512) {
    self.capacity = capacity
    self.start = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 8)
  }

  deinit { self.start.deallocate() }

  /// What was written; valid until the next write.
  var contents: UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(start: self.start, count: self.count)
  }

  /// Forgets everything from `count` on.
  func truncate(to count: Int) { self.count = count }

  /// Makes room for `additional` bytes more.
  @inline(__always)
  private func reserve(_ additional: Int) {
    if self.capacity - self.count < additional { self.grow(additional) }
  }

  @inline(never)
  private func grow(_ additional: Int) {
    let capacity = max(self.capacity * 2, self.count + additional)
    let start = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 8)
    start.copyMemory(from: self.start, byteCount: self.count)
    self.start.deallocate()
    self.start = start
    self.capacity = capacity
  }

  @inline(__always)
  func writeVarint(_ value: UInt64) {
    self.reserve(10)
    var rest = value
    while rest >= 0x80 {
      self.start.storeBytes(
        of: UInt8(truncatingIfNeeded: rest) | 0x80,
        toByteOffset: self.count,
        as: UInt8.self
      )
      self.count += 1
      rest >>= 7
    }
    self.start.storeBytes(
      of: UInt8(truncatingIfNeeded: rest),
      toByteOffset: self.count,
      as: UInt8.self
    )
    self.count += 1
  }

  /// A negative number takes ten bytes, also in an `int32`.
  @inline(__always)
  func writeVarint(_ value: Int64) { self.writeVarint(UInt64(bitPattern: value)) }

  @inline(__always)
  func writeFixed(_ value: UInt64) {
    self.reserve(8)
    self.start.storeBytes(of: value.littleEndian, toByteOffset: self.count, as: UInt64.self)
    self.count += 8
  }

  @inline(__always)
  func writeFixed(_ value: UInt32) {
    self.reserve(4)
    self.start.storeBytes(of: value.littleEndian, toByteOffset: self.count, as: UInt32.self)
    self.count += 4
  }

  @inline(__always)
  func write(_ bytes: UnsafeRawBufferPointer) {
    guard let source = bytes.baseAddress else { return }
    self.reserve(bytes.count)
    (self.start + self.count).copyMemory(from: source, byteCount: bytes.count)
    self.count += bytes.count
  }

  /// Writes a tag and leaves room for the length of what follows.
  ///
  /// - Returns: what `endLength` takes.
  func beginLength(tag: UInt64) -> Int {
    self.writeVarint(tag)
    self.reserve(1)
    self.count += 1
    return self.count
  }

  /// Fills in the length of what was written since `beginLength`.
  func endLength(_ begin: Int) {
    let length = self.count - begin
    var more = 0
    var rest = length >> 7
    while rest > 0 {
      more += 1
      rest >>= 7
    }
    if more > 0 {
      // Most messages are shorter than 128 bytes; the others move a little.
      self.reserve(more)
      let source = self.start + begin
      (source + more).copyMemory(from: source, byteCount: length)
    }
    let end = self.count + more
    self.count = begin - 1
    self.writeVarint(UInt64(length))
    self.count = end
  }
}
