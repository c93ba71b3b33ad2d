/// Base64 with the standard alphabet
/// ([RFC 4648 section 4](https://www.rfc-editor.org/rfc/rfc4648#section-4)), as `-bin` metadata uses.
public enum Base64 {
  /// Encodes without padding, which is what
  /// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests) tells
  /// senders to write.
  public static func encode(_ bytes: some Collection<UInt8>) -> String {
    bytes.withContiguousStorageIfAvailable { encode(UnsafeRawBufferPointer($0)) }
      ?? Array(bytes).withUnsafeBytes { encode($0) }
  }

  /// Encodes without padding.
  public static func encode(_ bytes: UnsafeRawBufferPointer) -> String {
    let groups = bytes.count / 3
    let tail = bytes.count % 3
    let length = groups * 4 + (tail == 0 ? 0 : tail + 1)
    return String(unsafeUninitializedCapacity: length) { output in
      func digit(_ bits: UInt32) -> UInt8 { alphabet.utf8Start[Int(bits & 0x3f)] }
      for group in 0..<groups {
        let input = group * 3
        let bits =
          UInt32(bytes[input]) << 16 | UInt32(bytes[input + 1]) << 8 | UInt32(bytes[input + 2])
        output[group * 4] = digit(bits >> 18)
        output[group * 4 + 1] = digit(bits >> 12)
        output[group * 4 + 2] = digit(bits >> 6)
        output[group * 4 + 3] = digit(bits)
      }
      if tail > 0 {
        let first = UInt32(bytes[groups * 3]) << 16
        let bits = tail == 1 ? first : first | UInt32(bytes[groups * 3 + 1]) << 8
        output[groups * 4] = digit(bits >> 18)
        output[groups * 4 + 1] = digit(bits >> 12)
        if tail == 2 { output[groups * 4 + 2] = digit(bits >> 6) }
      }
      return length
    }
  }

  /// Decodes padded, unpadded and partly padded text, as grpc's own servers do.
  ///
  /// - Returns: `nil` for a character outside the alphabet, a length that no bytes have, more padding
  ///   than the last group lacks, or bits set beyond the last byte.
  public static func decode(_ text: String) -> [UInt8]? {
    text.withUTF8Bytes { decode($0[...]) }
  }

  static func decode(_ text: Slice<UnsafeBufferPointer<UInt8>>) -> [UInt8]? {
    var digits = UnsafeBufferPointer(rebasing: text)
    var padding = 0
    while let last = digits.last, last == UInt8(ascii: "=") {
      padding += 1
      digits = UnsafeBufferPointer(rebasing: digits.dropLast())
    }
    let tail = digits.count % 4
    guard tail != 1, padding <= (4 - tail) % 4 else { return nil }
    let length = digits.count / 4 * 3 + (tail == 0 ? 0 : tail - 1)
    var valid = true
    let bytes = [UInt8](unsafeUninitializedCapacity: length) { output, count in
      var bits: UInt32 = 0
      var bitCount = 0
      for character in digits {
        guard let value = value(of: character) else {
          valid = false
          return
        }
        bits = bits << 6 | UInt32(value)
        bitCount += 6
        if bitCount >= 8 {
          bitCount -= 8
          output[count] = UInt8(truncatingIfNeeded: bits >> UInt32(bitCount))
          count += 1
        }
      }
      valid = bits & (1 << UInt32(bitCount) - 1) == 0
    }
    return valid ? bytes : nil
  }

  private static let alphabet: StaticString =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

  @inline(__always)
  private static func value(of character: UInt8) -> UInt8? {
    switch character {
    case UInt8(ascii: "A")...UInt8(ascii: "Z"): character - UInt8(ascii: "A")
    case UInt8(ascii: "a")...UInt8(ascii: "z"): character - UInt8(ascii: "a") + 26
    case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0") + 52
    case UInt8(ascii: "+"): 62
    case UInt8(ascii: "/"): 63
    default: nil
    }
  }
}
