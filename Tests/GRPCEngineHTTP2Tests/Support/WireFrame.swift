import NIOCore

/// A frame's header as it is on the wire, each part of a header block for itself.
struct WireFrame {
  let type: UInt8
  let flags: UInt8
  let stream: Int
  let length: Int

  /// Cuts bytes that are whole frames.
  static func split(_ bytes: ByteBuffer) -> [WireFrame] {
    var (bytes, frames) = (bytes, [WireFrame]())
    while let (word, flags, stream) = bytes.readMultipleIntegers(
      as: (UInt32, UInt8, UInt32).self
    ) {
      let length = Int(word >> 8)
      let type = UInt8(truncatingIfNeeded: word)
      frames.append(WireFrame(type: type, flags: flags, stream: Int(stream), length: length))
      guard bytes.readSlice(length: length) != nil else { return [] }
    }
    return bytes.readableBytes == 0 ? frames : []
  }
}
