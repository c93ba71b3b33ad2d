public import NIOCore

/// Decodes the header blocks of one connection, in the order in which they come (RFC 7541).
///
/// It remembers the last blocks: a client that repeats a call sends the same bytes, which mean the same as
/// long as its table has not changed.
public struct HPACKDecoder {
  private var table: DynamicTable
  /// The largest table that the peer may ask for.
  private let maximumTableSize: Int
  private var known = KnownBlocks()
  /// Where strings are decoded.
  private var scratch: [UInt8] = []
  private static let scratchKept = 1024
  /// Whether the block that is being decoded has changed the table.
  private var hasChangedTable = false

  /// - Parameter maximumTableSize: what SETTINGS_HEADER_TABLE_SIZE says, in bytes; 4,096 unless it is
  ///   announced.
  public init(maximumTableSize: Int = 4096) {
    self.maximumTableSize = maximumTableSize
    self.table = DynamicTable(maximum: maximumTableSize)
  }

  /// - Parameter maximumSize: how much of the list is kept, in bytes by RFC 9113 section 6.5.2. All of it
  ///   is decoded: the blocks behind it need the table as this one leaves it.
  public mutating func decode(
    _ block: ByteBuffer,
    maximumSize: Int
  ) throws(HPACKError) -> HeaderBlock {
    if let known = self.known.find(block) { return known }
    self.hasChangedTable = false
    var (fields, size) = ([HeaderField](), 0)
    fields.reserveCapacity(16)
    let bytes = block.readableBytesUInt8Span
    var index = 0
    while index < bytes.count {
      guard let field = try self.next(bytes, &index, mayResize: size == 0) else { continue }
      size += field.size
      if size <= maximumSize { fields.append(field) }
    }
    let decoded = HeaderBlock(HeaderList(fields), size: size)
    if self.hasChangedTable {
      self.known.forget()
    } else {
      self.known.remember(block, decoded)
    }
    return decoded
  }

  /// - Returns: the field that a representation stands for (RFC 7541 section 6); `nil` for a change of
  ///   the table's size.
  private mutating func next(
    _ bytes: Span<UInt8>,
    _ index: inout Int,
    mayResize: Bool
  ) throws(HPACKError) -> HeaderField? {
    let first = bytes[index]
    if first & 0x80 != 0 {
      return try self.table.field(Self.integer(bytes, &index, prefix: 7))
    }
    if first & 0xE0 == 0x20 {
      let size = try Self.integer(bytes, &index, prefix: 5)
      guard mayResize, size <= self.maximumTableSize else { throw .badTableSize }
      self.hasChangedTable = true
      self.table.resize(to: size)
      return nil
    }
    let isIndexed = first & 0x40 != 0
    let field = try self.literal(bytes, &index, prefix: isIndexed ? 6 : 4)
    if isIndexed {
      self.hasChangedTable = true
      self.table.insert(field)
    }
    return field
  }

  private mutating func literal(
    _ bytes: Span<UInt8>,
    _ index: inout Int,
    prefix: Int
  ) throws(HPACKError) -> HeaderField {
    let nameIndex = try Self.integer(bytes, &index, prefix: prefix)
    var (name, nameLength, isNameValid) = ("", 0, true)
    if nameIndex > 0 {
      let known = try self.table.field(nameIndex)
      name = known.name
      nameLength = known.nameLength
      isNameValid = known.isPseudo || HeaderField.isValidName(name.utf8)
    } else {
      (name, nameLength, isNameValid) = try self.string(bytes, &index, HeaderField.isValidName)
    }
    let (value, valueLength, isValueValid) = try self.string(
      bytes,
      &index,
      HeaderField.isValidValue
    )
    return HeaderField(
      received: name,
      value,
      lengths: (nameLength, valueLength),
      isNameValid: isNameValid,
      isValueValid: isValueValid
    )
  }

  /// Reads a string literal (section 5.2).
  private mutating func string(
    _ bytes: Span<UInt8>,
    _ index: inout Int,
    _ isValid: (UnsafeBufferPointer<UInt8>) -> Bool
  ) throws(HPACKError) -> (String, length: Int, isValid: Bool) {
    guard index < bytes.count else { throw .truncated }
    let isCoded = bytes[index] & 0x80 != 0
    let length = try Self.integer(bytes, &index, prefix: 7)
    guard length <= bytes.count - index else { throw .truncated }
    let content = bytes.extracting(index..<index + length)
    index += length
    guard isCoded else {
      return content.withUnsafeBufferPointer {
        (String(decoding: $0, as: UTF8.self), $0.count, isValid($0))
      }
    }
    self.scratch.removeAll(keepingCapacity: self.scratch.count <= Self.scratchKept)
    try Huffman.decode(content, into: &self.scratch)
    return self.scratch.withUnsafeBufferPointer {
      (String(decoding: $0, as: UTF8.self), $0.count, isValid($0))
    }
  }

  /// Reads an integer that begins in the last bits of a byte (section 5.1).
  private static func integer(
    _ bytes: Span<UInt8>,
    _ index: inout Int,
    prefix: Int
  ) throws(HPACKError) -> Int {
    guard index < bytes.count else { throw .truncated }
    let mask = (1 << prefix) - 1
    var value = Int(bytes[index]) & mask
    index += 1
    guard value == mask else { return value }
    var shift = 0
    while true {
      guard index < bytes.count else { throw .truncated }
      // Five bytes say more than any length or index here may be.
      guard shift <= 28 else { throw .integerTooLarge }
      let byte = bytes[index]
      index += 1
      value += Int(byte & 0x7F) << shift
      shift += 7
      if byte & 0x80 == 0 { return value }
    }
  }
}

/// The header blocks that came last and left the table as it was.
private struct KnownBlocks {
  /// As many kinds of calls as a connection may alternate between.
  private static let most = 4
  /// Longer ones hardly repeat, and would cost memory: in bytes as they come, and of the list.
  private static let (largest, largestList) = (512, 2048)

  private var blocks: [(bytes: ByteBuffer, block: HeaderBlock)] = []
  private var next = 0

  func find(_ bytes: ByteBuffer) -> HeaderBlock? {
    for known in self.blocks where known.bytes == bytes { return known.block }
    return nil
  }

  mutating func remember(_ bytes: ByteBuffer, _ block: HeaderBlock) {
    guard bytes.readableBytes <= Self.largest, block.size <= Self.largestList else { return }
    // A copy: `bytes` is a part of what was read, which would be kept with it.
    var own = ByteBuffer()
    own.writeImmutableBuffer(bytes)
    if self.blocks.count < Self.most {
      self.blocks.append((own, block))
    } else {
      self.blocks[self.next] = (own, block)
      self.next = (self.next + 1) % Self.most
    }
  }

  mutating func forget() {
    guard !self.blocks.isEmpty else { return }
    self.blocks.removeAll(keepingCapacity: true)
    self.next = 0
  }
}
