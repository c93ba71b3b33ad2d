package import NIOCore

/// Splits the frames that NIOHTTP2 writes into such as the peer takes.
///
/// NIOHTTP2 writes a header block as one frame, or not at all: one that is larger than the peer's
/// SETTINGS_MAX_FRAME_SIZE is an error of the connection, though RFC 9113 section 6.10 has
/// CONTINUATION for it. So it is told of larger frames than the peer takes (`PeerSettings`), and what
/// it writes is split here, DATA too.
///
/// And its GOAWAY about an error gets the last stream that was heard of, where NIOHTTP2 names 0 or none: a
/// peer that is told 0 takes it that nothing was done, and makes all its calls once more (section 6.8).
///
/// A value: the writes go in, in their order, and what is to be written in their place comes out.
package struct FrameSplitter {
  /// The least that a peer takes, and what it takes while it has said nothing.
  package static let least = 16_384
  /// What NIOHTTP2 is told at least. As much of one stream's DATA may go out between that of others.
  package static let told = 262_144

  private static let headerLength = 9
  private static let (data, headers, continuation): (UInt8, UInt8, UInt8) = (0, 1, 9)
  private static let goAway: UInt8 = 7
  private static let (endStream, endHeaders): (UInt8, UInt8) = (1, 4)

  /// The peer's SETTINGS_MAX_FRAME_SIZE, `least` at least.
  package var maximum = Self.least {
    didSet { self.maximum = max(self.maximum, Self.least) }
  }
  /// Bytes of the frame under way that come with the next write.
  private var rest = 0
  /// The DATA frame whose content comes with the next write, and is too large for one.
  private var split: (flags: UInt8, stream: UInt32)?
  /// What the last GOAWAY named: no further one may name more (section 6.8).
  package private(set) var announced = UInt32(Int32.max)

  package init() {}

  /// - Parameters:
  ///   - bytes: a frame, or its beginning, or the rest of it.
  ///   - lastStream: the last stream of the peer's that was heard of.
  /// - Returns: what to write instead; `nil`: it is to be written as it is.
  package mutating func write(
    _ bytes: ByteBuffer,
    lastStream: @autoclosure () -> Int
  ) -> [ByteBuffer]? {
    guard self.rest == 0 else {
      self.rest = max(0, self.rest - bytes.readableBytes)
      guard let (flags, stream) = self.split else { return nil }
      self.split = nil
      return self.frames(bytes, stream) { isLast, _ in (Self.data, isLast ? flags : 0) }
    }
    guard let word = bytes.getInteger(at: bytes.readerIndex, as: UInt32.self) else { return nil }
    let length = Int(word >> 8)
    self.rest = max(0, Self.headerLength + length - bytes.readableBytes)
    if UInt8(truncatingIfNeeded: word) == Self.goAway { return self.goAway(bytes, lastStream()) }
    if length <= self.maximum { return nil }
    return self.begin(bytes)
  }

  private mutating func goAway(_ bytes: ByteBuffer, _ lastStream: Int) -> [ByteBuffer]? {
    var frame = bytes
    let content = frame.readerIndex + Self.headerLength
    guard
      let (named, code) = frame.getMultipleIntegers(at: content, as: (UInt32, UInt32).self)
    else { return nil }
    self.announced = min(self.announced, code == 0 ? named : UInt32(clamping: lastStream))
    frame.setInteger(self.announced, at: content)
    return [frame]
  }

  private mutating func begin(_ bytes: ByteBuffer) -> [ByteBuffer]? {
    var content = bytes
    guard let header = content.readSlice(length: Self.headerLength),
      let type = header.getInteger(at: header.readerIndex + 3, as: UInt8.self),
      let flags = header.getInteger(at: header.readerIndex + 4, as: UInt8.self),
      let stream = header.getInteger(at: header.readerIndex + 5, as: UInt32.self)
    else { return nil }
    switch type {
    case Self.data:
      self.split = (flags, stream)
      return []
    case Self.headers:
      return self.frames(content, stream) { isLast, isFirst in
        let end = isLast ? Self.endHeaders : 0
        return isFirst ? (Self.headers, flags & Self.endStream | end) : (Self.continuation, end)
      }
    default: return nil
    }
  }

  /// - Parameter head: the type and the flags of a part, which may be the last or the first one.
  private func frames(
    _ content: ByteBuffer,
    _ stream: UInt32,
    _ head: (_ isLast: Bool, _ isFirst: Bool) -> (type: UInt8, flags: UInt8)
  ) -> [ByteBuffer] {
    var (content, frames) = (content, [ByteBuffer]())
    while content.readableBytes > 0 {
      let length = min(content.readableBytes, self.maximum)
      let (type, flags) = head(length == content.readableBytes, frames.isEmpty)
      var header = ByteBuffer()
      header.writeInteger(UInt32(length) << 8 | UInt32(type))
      header.writeMultipleIntegers(flags, stream)
      frames.append(header)
      if let part = content.readSlice(length: length) { frames.append(part) }
    }
    return frames
  }
}
