/// Bytes in protobuf's wire format, as they are written.
///
/// Belongs to whoever writes; it is not shared between threads.
/// https://protobuf.dev/programming-guides/encoding/
public final class ProtobufWriter {
  @usableFromInline var bytes: [UInt8] = []

  /// - Parameter capacity: bytes to make room for at first; it grows.
  public init(capacity: Int = 512) { self.bytes.reserveCapacity(capacity) }

  /// Bytes that were written.
  @inlinable public var count: Int { self.bytes.count }

  /// Gives what was written, valid while `body` runs; that must not write.
  public func withContents<Result>(_ body: (UnsafeRawBufferPointer) -> Result) -> Result {
    self.bytes.withUnsafeBytes(body)
  }

  /// Forgets what was written, and keeps the memory for what is written next.
  public func removeAll() { self.bytes.removeAll(keepingCapacity: true) }

  @inlinable
  public func writeVarint(_ value: UInt64) {
    var rest = value
    while rest >= 0x80 {
      self.bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    self.bytes.append(UInt8(truncatingIfNeeded: rest))
  }

  /// A negative number takes ten bytes, also in an `int32`.
  @inlinable
  public func writeVarint(_ value: Int64) { self.writeVarint(UInt64(bitPattern: value)) }

  @inlinable
  public func writeFixed(_ value: some FixedWidthInteger) {
    withUnsafeBytes(of: value.littleEndian) { self.bytes.append(contentsOf: $0) }
  }

  @inlinable
  public func write(_ bytes: UnsafeRawBufferPointer) { self.bytes.append(contentsOf: bytes) }

  /// Writes a tag and leaves room for the length of what follows.
  ///
  /// - Returns: what `endLength` takes.
  public func beginLength(tag: UInt64) -> Int {
    self.writeVarint(tag)
    self.bytes.append(0)
    return self.bytes.count
  }

  /// Fills in the length of what was written since `beginLength`. What has begun inside must have
  /// been ended.
  public func endLength(_ begin: Int) {
    var rest = self.bytes.count - begin
    var position = begin - 1
    // Most messages are shorter than 128 bytes; the others move a little.
    let more = Self.varintLength(rest) - 1
    if more > 0 { self.bytes.insert(contentsOf: repeatElement(0, count: more), at: begin) }
    while rest >= 0x80 {
      self.bytes[position] = UInt8(truncatingIfNeeded: rest) | 0x80
      position += 1
      rest >>= 7
    }
    self.bytes[position] = UInt8(truncatingIfNeeded: rest)
  }

  private static func varintLength(_ value: Int) -> Int {
    (Int.bitWidth - (value | 1).leadingZeroBitCount + 6) / 7
  }
}
