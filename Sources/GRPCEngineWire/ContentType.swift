/// Tells requests that are gRPC from those that are not.
public enum ContentType {
  /// Whether a `content-type` is `application/grpc`, alone or with a subtype (`+proto`) or
  /// parameters (`;charset=utf-8`).
  ///
  /// Media types compare without regard to case, and white space may precede the `;`
  /// ([RFC 9110 section 8.3.1](https://www.rfc-editor.org/rfc/rfc9110#section-8.3.1)).
  public static func isGRPC(_ value: String) -> Bool {
    value.withUTF8Bytes { bytes in
      guard bytes.count >= expected.utf8Count else { return false }
      for index in 0..<expected.utf8Count where lowercased(bytes[index]) != expected[index] {
        return false
      }
      var rest = bytes[expected.utf8Count...]
      if rest.isEmpty || rest.first == UInt8(ascii: "+") { return true }
      while let next = rest.first, next == UInt8(ascii: " ") || next == UInt8(ascii: "\t") {
        rest = rest.dropFirst()
      }
      return rest.isEmpty || rest.first == UInt8(ascii: ";")
    }
  }

  private static let expected: StaticString = "application/grpc"

  private static func lowercased(_ byte: UInt8) -> UInt8 {
    (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte) ? byte | 0x20 : byte
  }
}

extension StaticString {
  fileprivate var utf8Count: Int { utf8CodeUnitCount }

  fileprivate subscript(index: Int) -> UInt8 { utf8Start[index] }
}
