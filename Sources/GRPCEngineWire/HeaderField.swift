/// What HTTP/2 allows in a header field (RFC 9113 section 8.2.1).
public enum HeaderField {
  /// Whether a name is made of lower-case token characters; a pseudo-header's colon is not one.
  public static func isValidName(_ name: String) -> Bool {
    name.withUTF8Bytes { bytes in
      guard !bytes.isEmpty else { return false }
      for byte in bytes {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
          UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: "."):
          continue
        case UInt8(ascii: "!"), UInt8(ascii: "#"), UInt8(ascii: "$"), UInt8(ascii: "%"),
          UInt8(ascii: "&"), UInt8(ascii: "'"), UInt8(ascii: "*"), UInt8(ascii: "+"),
          UInt8(ascii: "^"), UInt8(ascii: "`"), UInt8(ascii: "|"), UInt8(ascii: "~"):
          continue
        default:
          return false
        }
      }
      return true
    }
  }

  /// Whether a value has no control characters but tabs. Blanks at its ends are borne although
  /// RFC 9113 forbids them: gRPC's own clients send what their users put into metadata.
  public static func isValidValue(_ value: String) -> Bool {
    value.withUTF8Bytes { bytes in
      var isValid = true
      for byte in bytes where byte < 0x20 || byte == 0x7F {
        if byte != UInt8(ascii: "\t") { isValid = false }
      }
      return isValid
    }
  }

  /// Whether a field speaks of one connection, which HTTP/2 has no use for (section 8.2.2).
  public static func isConnectionSpecific(_ name: String) -> Bool {
    switch name.utf8.count {
    case 7: name == "upgrade"
    case 10: name == "connection" || name == "keep-alive"
    case 16: name == "proxy-connection"
    case 17: name == "transfer-encoding"
    default: false
    }
  }
}
