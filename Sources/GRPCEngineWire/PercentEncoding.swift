/// The encoding of `grpc-message`: *Percent-Encoded* in
/// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses).
///
/// Printable ASCII except `%` stands for itself; every other byte of the UTF-8 text becomes `%XX`.
public enum PercentEncoding {
  /// - Returns: the text as a header value; the same string when nothing needs escaping.
  public static func encode(_ text: String) -> String {
    text.withUTF8Bytes { bytes in
      var escaped = 0
      for byte in bytes where needsEscape(byte) { escaped += 1 }
      if escaped == 0 { return text }
      return String(unsafeUninitializedCapacity: bytes.count + 2 * escaped) { output in
        var end = 0
        for byte in bytes {
          if needsEscape(byte) {
            output[end] = UInt8(ascii: "%")
            output[end + 1] = hexDigit(byte >> 4)
            output[end + 2] = hexDigit(byte & 0xf)
            end += 3
          } else {
            output[end] = byte
            end += 1
          }
        }
        return end
      }
    }
  }

  /// Decodes leniently, as the specification asks: an invalid escape stays as it is, and bytes that
  /// are not UTF-8 become U+FFFD.
  ///
  /// - Returns: the text; the same string when it holds no escape.
  public static func decode(_ value: String) -> String {
    value.withUTF8Bytes { bytes in
      guard bytes.contains(UInt8(ascii: "%")) else { return value }
      return String(unsafeUninitializedRepairedCapacity: bytes.count) { output in
        var end = 0
        var index = 0
        while index < bytes.count {
          if bytes[index] == UInt8(ascii: "%"), index + 2 < bytes.count,
            let high = hexValue(bytes[index + 1]), let low = hexValue(bytes[index + 2])
          {
            output[end] = high << 4 | low
            index += 3
          } else {
            output[end] = bytes[index]
            index += 1
          }
          end += 1
        }
        return end
      }
    }
  }

  @inline(__always)
  private static func needsEscape(_ byte: UInt8) -> Bool {
    byte < 0x20 || byte > 0x7e || byte == UInt8(ascii: "%")
  }

  private static func hexDigit(_ nibble: UInt8) -> UInt8 {
    nibble < 10 ? UInt8(ascii: "0") + nibble : UInt8(ascii: "A") + (nibble - 10)
  }

  private static func hexValue(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    default: nil
    }
  }
}

extension String {
  /// Makes a string of the bytes that `body` writes, with U+FFFD for what is not UTF-8.
  fileprivate init(
    unsafeUninitializedRepairedCapacity capacity: Int,
    body: (UnsafeMutableBufferPointer<UInt8>) -> Int
  ) {
    self = withUnsafeTemporaryAllocation(of: UInt8.self, capacity: capacity) { scratch in
      let count = body(scratch)
      return String(decoding: UnsafeBufferPointer(rebasing: scratch[..<count]), as: UTF8.self)
    }
  }
}
