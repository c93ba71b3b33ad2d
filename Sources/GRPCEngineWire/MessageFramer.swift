public import NIOCore

/// Writes the prefix of a *Length-Prefixed-Message*
/// ([PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests)).
public enum MessageFramer {
  /// The prefix's size in bytes: a flag and a 32-bit length.
  public static let prefixLength = 5

  /// - Parameter length: the message's size in bytes, after compression; at most `UInt32.max`, which
  ///   is all that the wire can say.
  public static func writePrefix(
    compressed: Bool,
    length: Int,
    into buffer: inout ByteBuffer
  ) {
    Self.withPrefix(compressed: compressed, length: length) { _ = buffer.writeBytes($0) }
  }

  /// Gives the same bytes to `body`, whose pointer is valid only there.
  public static func withPrefix(
    compressed: Bool,
    length: Int,
    _ body: (UnsafeRawBufferPointer) -> Void
  ) {
    assert((0...Int(UInt32.max)).contains(length))
    let length = UInt64(UInt32(clamping: length))
    // The first five bytes of this number, which eight hold.
    let prefix = ((compressed ? 1 : 0) << 56 | length << 24).bigEndian
    withUnsafeBytes(of: prefix) { body(UnsafeRawBufferPointer(rebasing: $0[..<Self.prefixLength])) }
  }
}
