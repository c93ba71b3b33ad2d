package import NIOCore

/// Reads the fields of a protobuf message, one after the other.
///
/// The rules are those of the
/// [encoding](https://protobuf.dev/programming-guides/encoding/), and where that leaves a choice,
/// those of the runtime below Python's protobuf. Nothing traps, whatever the bytes.
package struct ProtobufReader {
  /// The bytes are no protobuf message.
  package struct Malformed: Error, Hashable {
    package init() {}
  }

  /// A field of a length, or one of another wire type, which is only good for skipping.
  package enum Field: Hashable, Sendable {
    case bytes(number: UInt32, ByteBuffer)
    case other(number: UInt32)
  }

  /// How deep groups may be nested.
  private static let maximumDepth = 100

  private var rest: ByteBuffer

  package init(_ message: ByteBuffer) { self.rest = message }

  /// - Returns: the next field; `nil` at the end.
  package mutating func next() throws(Malformed) -> Field? {
    guard self.rest.readableBytes > 0 else { return nil }
    let (number, wireType) = try self.tag()
    if wireType == 2 { return .bytes(number: number, try self.lengthDelimited()) }
    try self.skip(number, wireType, depth: 0)
    return .other(number: number)
  }

  private mutating func tag() throws(Malformed) -> (number: UInt32, wireType: UInt32) {
    guard let tag = UInt32(exactly: try self.varint(atMost: 5)), tag >> 3 != 0 else {
      throw Malformed()
    }
    return (tag >> 3, tag & 7)
  }

  private mutating func varint(atMost maximum: Int = 10) throws(Malformed) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<maximum {
      guard let byte = self.rest.readInteger(as: UInt8.self) else { throw Malformed() }
      // Bits past the 64th are dropped.
      value |= UInt64(byte & 0x7f) << UInt64(7 * index)
      if byte < 0x80 { return value }
    }
    throw Malformed()
  }

  private mutating func lengthDelimited() throws(Malformed) -> ByteBuffer {
    guard let length = Int32(exactly: try self.varint(atMost: 5)),
      let bytes = self.rest.readSlice(length: Int(length))
    else { throw Malformed() }
    return bytes
  }

  private mutating func skip(
    _ number: UInt32,
    _ wireType: UInt32,
    depth: Int
  ) throws(Malformed) {
    switch wireType {
    case 0: _ = try self.varint()
    case 1: try self.skip(bytes: 8)
    case 2: _ = try self.lengthDelimited()
    case 3: try self.skipGroup(number, depth: depth + 1)
    case 5: try self.skip(bytes: 4)
    default: throw Malformed()
    }
  }

  private mutating func skip(bytes count: Int) throws(Malformed) {
    guard self.rest.readSlice(length: count) != nil else { throw Malformed() }
  }

  /// Skips to the end of a group, whose number must be that of its beginning.
  private mutating func skipGroup(_ number: UInt32, depth: Int) throws(Malformed) {
    guard depth <= Self.maximumDepth else { throw Malformed() }
    while true {
      let (inner, wireType) = try self.tag()
      if wireType == 4 {
        guard inner == number else { throw Malformed() }
        return
      }
      try self.skip(inner, wireType, depth: depth)
    }
  }
}
