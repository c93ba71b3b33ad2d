public import NIOCore

/// Encodes the header blocks of one connection, in the order in which they leave (RFC 7541).
///
/// In the peer's table it puts what is marked as repeated and nothing else, so that its own part of that
/// stays small, whatever answers say.
public struct HPACKEncoder: Sendable {
  /// The most that is used of the peer's table, in bytes; every peer begins with as much.
  private static let largestTable = 4096
  /// The most fields in it: each is compared with.
  private static let mostFields = 16

  private var tableSize = Self.largestTable
  private var isResizeDue = false
  /// What is in the peer's table, the oldest first. Nothing is ever evicted: what has no room stays out.
  private var repeated: [HeaderField] = []
  private var repeatedSize = 0
  private var constants = ConstantBlocks()

  public init() {}

  /// The peer's SETTINGS_HEADER_TABLE_SIZE.
  public mutating func limitTable(to size: Int) {
    let size = min(max(size, 0), Self.largestTable)
    guard size != self.tableSize || self.isResizeDue else { return }
    self.tableSize = size
    self.isResizeDue = true
    self.repeated.removeAll(keepingCapacity: true)
    self.repeatedSize = 0
    self.constants.forget()
  }

  /// Appends a block to `output`.
  public mutating func encode(_ list: HeaderList, into output: inout ByteBuffer) {
    if self.isResizeDue {
      // Section 4.2: the smallest size since the last block, then the one that holds. 0 is small enough
      // for both, and empties the table.
      self.isResizeDue = false
      Self.write(0, prefix: 5, flags: 0x20, to: &output)
      Self.write(self.tableSize, prefix: 5, flags: 0x20, to: &output)
    }
    if let bytes = self.constants.bytes(of: list) {
      output.writeImmutableBuffer(bytes)
      return
    }
    let start = output.writerIndex
    var areAllKnown = true
    for field in list.fields {
      let isKnown = self.encode(field, into: &output)
      areAllKnown = areAllKnown && isKnown
    }
    if areAllKnown { self.constants.remember(list, output, from: start) }
  }

  /// - Returns: whether the peer's tables have the field, so that it is an index.
  private mutating func encode(_ field: HeaderField, into output: inout ByteBuffer) -> Bool {
    let name = Self.staticIndex(field.name)
    if name == Self.status, field.value == "200" {
      Self.write(name, prefix: 7, flags: 0x80, to: &output)
      return true
    }
    guard field.isRepeated else {
      Self.literal(field, name, prefix: 4, flags: 0, to: &output)
      return false
    }
    if let place = self.repeated.lastIndex(where: {
      $0.value == field.value && $0.name == field.name
    }) {
      let index = StaticTable.fields.count + self.repeated.count - place
      Self.write(index, prefix: 7, flags: 0x80, to: &output)
      return true
    }
    guard self.repeatedSize + field.size <= self.tableSize, self.repeated.count < Self.mostFields
    else {
      Self.literal(field, name, prefix: 4, flags: 0, to: &output)
      return false
    }
    self.repeated.append(field)
    self.repeatedSize += field.size
    self.constants.forget()  // The indices of those before it have changed.
    Self.literal(field, name, prefix: 6, flags: 0x40, to: &output)
    return false
  }

  /// `:status: 200` in the static table.
  private static let status = 8
  private static let contentType = 31

  /// Where the static table has a name; 0 for those that are not asked for.
  private static func staticIndex(_ name: String) -> Int {
    switch name.utf8.count {
    case 7 where name == ":status": Self.status
    case 12 where name == "content-type": Self.contentType
    default: 0
    }
  }

  /// A field that is spelled out (section 6.2).
  private static func literal(
    _ field: HeaderField,
    _ nameIndex: Int,
    prefix: Int,
    flags: UInt8,
    to output: inout ByteBuffer
  ) {
    Self.write(nameIndex, prefix: prefix, flags: flags, to: &output)
    if nameIndex == 0 { Self.write(field.name, to: &output) }
    Self.write(field.value, to: &output)
  }

  private static func write(_ string: String, to output: inout ByteBuffer) {
    var string = string
    string.withUTF8 { bytes in
      let length = Huffman.encodedLength(bytes)
      if length < bytes.count {
        Self.write(length, prefix: 7, flags: 0x80, to: &output)
        Huffman.encode(bytes, into: &output)
      } else {
        Self.write(bytes.count, prefix: 7, flags: 0, to: &output)
        output.writeBytes(bytes)
      }
    }
  }

  /// Writes an integer behind the flags of its first byte (section 5.1).
  private static func write(_ value: Int, prefix: Int, flags: UInt8, to output: inout ByteBuffer) {
    let mask = (1 << prefix) - 1
    guard value >= mask else {
      output.writeInteger(flags | UInt8(truncatingIfNeeded: value))
      return
    }
    output.writeInteger(flags | UInt8(truncatingIfNeeded: mask))
    var rest = value - mask
    while rest >= 0x80 {
      output.writeInteger(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    output.writeInteger(UInt8(truncatingIfNeeded: rest))
  }
}

/// The bytes of lists that consist of indices, and are the same as long as no field is added to the table.
///
/// A list is known by its memory, which is not used again while it is kept here.
private struct ConstantBlocks: Sendable {
  /// Headers and trailers of good answers, with and without compression.
  private static let most = 4

  private var blocks: [(list: HeaderList, bytes: ByteBuffer)] = []
  private var next = 0

  func bytes(of list: HeaderList) -> ByteBuffer? {
    for block in self.blocks where block.list.isSame(as: list) { return block.bytes }
    return nil
  }

  mutating func remember(_ list: HeaderList, _ output: ByteBuffer, from start: Int) {
    guard let block = output.getSlice(at: start, length: output.writerIndex - start) else { return }
    var own = ByteBuffer()  // `output` is not to be kept
    own.writeImmutableBuffer(block)
    if self.blocks.count < Self.most {
      self.blocks.append((list, own))
    } else {
      self.blocks[self.next] = (list, own)
      self.next = (self.next + 1) % Self.most
    }
  }

  mutating func forget() {
    self.blocks.removeAll(keepingCapacity: true)
    self.next = 0
  }
}
