package import NIOCore

/// What is to be written to the socket, in order: small pieces copied together, large ones as they are.
package struct FrameOutput {
  /// A piece of more bytes is passed on as it is, where it is most of its buffer: copying it would cost more than it
  /// saves.
  private static let largestCopied = 4096
  /// Bytes that are gathered in one buffer.
  private static let capacity = 32 * 1024
  package static let initialCapacity = 1024

  private var full: [ByteBuffer] = []
  private var gathered = ByteBuffer()
  /// How much was gathered last time, and may be again. The memory itself is not kept: most connections are
  /// idle most of the time.
  private var usual = Self.initialCapacity
  /// Bytes that wait to be taken.
  package private(set) var count = 0

  package init() {}

  package mutating func write(_ header: FrameHeader) {
    self.prepare(FrameHeader.size)
    header.write(to: &self.gathered)
    self.count += FrameHeader.size
  }

  package mutating func write(_ bytes: ByteBuffer) {
    let length = bytes.readableBytes
    self.count += length
    // Whatever waits for the socket keeps all of its buffer: a small part of a large one is copied, too.
    if length <= Self.largestCopied || length < bytes.storageCapacity / 2 {
      self.prepare(length)
      self.gathered.writeImmutableBuffer(bytes)
    } else {
      self.closeGathered()
      self.full.append(bytes)
    }
  }

  /// Writes with `body`, which appends to the buffer that it is given.
  package mutating func write(_ body: (inout ByteBuffer) -> Void) {
    self.prepare(0)
    let before = self.gathered.readableBytes
    body(&self.gathered)
    self.count += self.gathered.readableBytes - before
  }

  /// Writes a header block as HEADERS, and as CONTINUATION what one frame can't hold (RFC 9113 section 6.10).
  ///
  /// - Parameter header: with its flags, but END_HEADERS, and without its length.
  mutating func writeFrame(
    _ header: FrameHeader,
    maximumLength: Int,
    _ list: HeaderList,
    _ encoder: inout HPACKEncoder
  ) {
    self.prepare(0)
    let start = self.gathered.writerIndex
    var header = header
    header.write(to: &self.gathered)
    encoder.encode(list, into: &self.gathered)
    header.length = self.gathered.writerIndex - start - FrameHeader.size
    if header.length <= maximumLength {
      header.flags |= FrameFlag.endHeaders
      header.set(in: &self.gathered, at: start)
      self.count += FrameHeader.size + header.length
      return
    }
    var block = self.gathered.getSlice(at: start + FrameHeader.size, length: header.length)
    self.gathered.moveWriterIndex(to: start)
    while let rest = block?.readableBytes, rest > 0,
      let part = block?.readSlice(length: min(rest, maximumLength))
    {
      header.length = part.readableBytes
      if header.length == rest { header.flags |= FrameFlag.endHeaders }
      self.write(header)
      self.write(part)
      header = FrameHeader(length: 0, type: FrameType.continuation, stream: header.stream)
    }
  }

  /// Gives what waits, and begins anew.
  package mutating func take() -> (pieces: [ByteBuffer], last: ByteBuffer?) {
    self.count = 0
    var pieces: [ByteBuffer] = []
    swap(&pieces, &self.full)
    guard self.gathered.readableBytes > 0 else { return (pieces, nil) }
    self.usual = max(Self.initialCapacity, min(self.gathered.readableBytes, Self.capacity))
    let last = self.gathered
    self.gathered = ByteBuffer()
    return (pieces, last)
  }

  private mutating func prepare(_ length: Int) {
    if self.gathered.capacity == 0 {
      self.gathered.reserveCapacity(self.usual)
    } else if self.gathered.readableBytes + length > Self.capacity {
      self.closeGathered()
    }
  }

  private mutating func closeGathered() {
    guard self.gathered.readableBytes > 0 else { return }
    self.full.append(self.gathered)
    self.gathered = ByteBuffer()
  }
}
