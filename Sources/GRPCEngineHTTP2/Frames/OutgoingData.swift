package import NIOCore

/// Bytes that are to be sent as DATA of one stream.
///
/// They are kept in pieces, since a part that waits for the socket keeps all of the memory that it is a part of:
/// with one buffer for a message of many megabytes, a few kilobytes that a peer does not read would keep it,
/// whatever became of the rest.
package struct OutgoingData: Sendable {
  /// Bytes of a piece at the most.
  package static let pieceSize = 32 * 1024

  /// Pieces that are full, those that are left from `first` on.
  private var full: [ByteBuffer] = []
  private var first = 0
  private var last: ByteBuffer
  package private(set) var readableBytes = 0

  /// - Parameter capacity: bytes that are about to be written.
  package init(capacity: Int) {
    self.last = ByteBufferAllocator().buffer(capacity: min(capacity, Self.pieceSize))
  }

  package mutating func write(_ bytes: UnsafeRawBufferPointer) {
    self.readableBytes += bytes.count
    var rest = bytes[...]
    while rest.count > Self.pieceSize - self.last.writerIndex {
      let part = rest.prefix(Self.pieceSize - self.last.writerIndex)
      self.last.writeBytes(UnsafeRawBufferPointer(rebasing: part))
      rest = rest.dropFirst(part.count)
      self.full.append(self.last)
      self.last = ByteBufferAllocator().buffer(capacity: min(rest.count, Self.pieceSize))
    }
    self.last.writeBytes(UnsafeRawBufferPointer(rebasing: rest))
  }

  /// Takes what comes next, `limit` bytes at the most; `nil` when nothing is left. The memory of what was taken is
  /// no longer held here.
  package mutating func readPart(atMost limit: Int) -> ByteBuffer? {
    let part: ByteBuffer?
    if self.first < self.full.count {
      part = Self.cut(&self.full[self.first], limit)
      if self.full[self.first].readableBytes == 0 { self.first += 1 }
    } else {
      guard self.last.readableBytes > 0 else { return nil }
      part = Self.cut(&self.last, limit)
    }
    self.readableBytes -= part?.readableBytes ?? 0
    return part
  }

  /// What is left may wait for ever for the peer's window, so it gets memory of its own size where it has become
  /// less than half of the piece.
  private static func cut(_ piece: inout ByteBuffer, _ limit: Int) -> ByteBuffer? {
    let part = piece.readSlice(length: min(limit, piece.readableBytes))
    if piece.readableBytes == 0 {
      piece = ByteBuffer()
    } else if piece.readableBytes < piece.storageCapacity / 2 {
      var rest = ByteBufferAllocator().buffer(capacity: piece.readableBytes)
      rest.writeImmutableBuffer(piece)
      piece = rest
    }
    return part
  }
}
