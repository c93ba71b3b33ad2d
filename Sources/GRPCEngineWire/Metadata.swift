public import GRPCEngineHTTP2

/// What the two applications of a call tell each other beside messages: keys and values, in order,
/// with repeated keys kept.
///
/// *Custom-Metadata* in
/// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
public struct Metadata: Sendable {
  /// Keys that end in `-bin` carry bytes, all others ASCII text.
  public enum Value: Hashable, Sendable {
    case ascii(String)
    case binary([UInt8])
  }

  public private(set) var entries: [(key: String, value: Value)] = []

  public init() {}

  /// Adds an entry after those there are.
  ///
  /// Nothing is checked here: whoever takes entries from an application asks ``isValidKey(_:)``,
  /// ``isBinaryKey(_:)``, ``isValidASCIIValue(_:)`` and ``isReserved(_:)`` first, and tells it what is
  /// wrong.
  public mutating func append(key: String, value: Value) {
    entries.append((key, value))
  }
}

// MARK: Rules

extension Metadata {
  /// Whether a key is lower-case letters, digits, `_`, `-` and `.`, and not empty.
  public static func isValidKey(_ key: String) -> Bool {
    key.withUTF8Bytes { bytes in
      bytes.allSatisfy { byte in
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
          UInt8(ascii: "_"), UInt8(ascii: "-"), UInt8(ascii: "."):
          true
        default:
          false
        }
      } && !bytes.isEmpty
    }
  }

  /// Whether a text value is printable ASCII and spaces, or empty.
  public static func isValidASCIIValue(_ value: String) -> Bool {
    value.withUTF8Bytes { bytes in bytes.allSatisfy { (0x20...0x7e).contains($0) } }
  }

  /// Whether a key's values are bytes: it ends in `-bin`.
  public static func isBinaryKey(_ key: String) -> Bool {
    key.withUTF8Bytes { bytes in
      let count = bytes.count
      return count >= 4 && bytes[count - 4] == UInt8(ascii: "-")
        && bytes[count - 3] == UInt8(ascii: "b") && bytes[count - 2] == UInt8(ascii: "i")
        && bytes[count - 1] == UInt8(ascii: "n")
    }
  }

  /// Whether an application must not send a key, because this layer or HTTP/2 gives it a meaning.
  ///
  /// The specification reserves all of `grpc-` for gRPC, but grpcio lets applications send what it
  /// does not use itself, and they do: `grpc-status-details-bin` carries rich errors,
  /// `grpc-retry-pushback-ms` steers retries, and interceptors forward `grpc-previous-rpc-attempts`.
  /// So only what would contradict the transport is reserved: what gRPC's own headers say, what
  /// HTTP/2 forbids ([RFC 9113 section 8.2.2](https://www.rfc-editor.org/rfc/rfc9113#section-8.2.2)),
  /// pseudo-headers, and `content-length`, which trailers and frames would belie. grpcio drops most
  /// of these without a word.
  public static func isReserved(_ key: String) -> Bool {
    switch key.utf8.first {
    case UInt8(ascii: ":"):
      true
    case UInt8(ascii: "c"):
      key == "content-type" || key == "content-length" || key == "connection"
    case UInt8(ascii: "g"):
      key == "grpc-status" || key == "grpc-message" || key == "grpc-encoding"
        || key == "grpc-accept-encoding" || key == "grpc-timeout"
        || key == "grpc-internal-encoding-request"
    case UInt8(ascii: "t"):
      key == "te" || key == "transfer-encoding"
    case UInt8(ascii: "k"), UInt8(ascii: "p"), UInt8(ascii: "u"):
      key == "keep-alive" || key == "proxy-connection" || key == "upgrade"
    default:
      false
    }
  }

  /// Whether a received header stays hidden from the application.
  ///
  /// The list is what `invocation_metadata()` of grpcio 1.85 leaves out, found by sending each header
  /// to it: what the transport itself reads, and what grpc keeps for its tracing and load reporting.
  /// `user-agent`, `host`, `grpc-message-type` and `grpc-previous-rpc-attempts` are visible there,
  /// and so here.
  static func isConsumed(_ key: String) -> Bool {
    switch key.utf8.first {
    case UInt8(ascii: ":"):
      true
    case UInt8(ascii: "c"):
      key == "content-type"
    case UInt8(ascii: "e"):
      key == "endpoint-load-metrics-bin"
    case UInt8(ascii: "g"):
      key == "grpc-timeout" || key == "grpc-accept-encoding" || key == "grpc-encoding"
        || key == "grpc-status" || key == "grpc-message" || key == "grpc-trace-bin"
        || key == "grpc-tags-bin" || key == "grpc-server-stats-bin"
        || key == "grpc-internal-encoding-request"
    case UInt8(ascii: "l"):
      key == "lb-cost-bin"
    case UInt8(ascii: "t"):
      key == "te"
    case UInt8(ascii: "x"):
      key == "x-envoy-peer-metadata"
    default:
      false
    }
  }
}

// MARK: Header lists

/// A received `-bin` value that is not base64.
public struct MalformedMetadata: Error, Hashable, Sendable {
  public let key: String

  /// What grpc's own servers end such a call with.
  public var status: Status {
    Status(
      code: .internalError,
      details: "Error parsing '\(key)' metadata: illegal base64 encoding"
    )
  }
}

extension Metadata {
  /// Takes from a peer's header list what its application sent.
  ///
  /// One binary header may carry several values, joined by commas; they become entries of their own,
  /// as the specification demands (grpc's own servers refuse them).
  ///
  /// - Throws: ``MalformedMetadata`` when a binary value is not base64. grpc's own servers end the call
  ///   then, with ``MalformedMetadata/status``.
  public init(validating headers: HeaderList) throws(MalformedMetadata) {
    var malformedKey: String?
    self.init(received: headers, malformedKey: &malformedKey)
    if let malformedKey { throw MalformedMetadata(key: malformedKey) }
  }

  /// As ``init(validating:)``, but leaves out binary values that are not base64.
  public init(received headers: HeaderList) {
    var malformedKey: String?
    self.init(received: headers, malformedKey: &malformedKey)
  }

  /// The most values that a proxy may have joined to one; grpc's own servers take no such list.
  private static var largestList: Int { 64 }

  private init(received headers: HeaderList, malformedKey: inout String?) {
    var unseen = headers.fields.count
    for field in headers.fields {
      unseen -= 1
      let (key, value) = (field.name, field.value)
      if Self.isConsumed(key) { continue }
      if entries.isEmpty { entries.reserveCapacity(unseen + 1) }
      guard Self.isBinaryKey(key) else {
        entries.append((key, .ascii(value)))
        continue
      }
      value.withUTF8Bytes { bytes in
        // A byte makes an element, and a reference of HPACK's makes thousands of bytes.
        let commas = bytes.reduce(into: 0) { $0 += $1 == UInt8(ascii: ",") ? 1 : 0 }
        guard commas < Self.largestList else {
          malformedKey = malformedKey ?? key
          return
        }
        for part in bytes.split(separator: UInt8(ascii: ","), omittingEmptySubsequences: false) {
          if let decoded = Base64.decode(trimmed(part)) {
            entries.append((key, .binary(decoded)))
          } else {
            malformedKey = malformedKey ?? key
          }
        }
      }
    }
  }

  /// Adds every entry to a header list, bytes as base64.
  ///
  /// Entries whose key HTTP/2 cannot carry are left out.
  public func append(to headers: inout HeaderList) {
    if entries.isEmpty { return }
    headers.reserveCapacity(headers.fields.count + entries.count)
    for (key, value) in entries where Self.isValidKey(key) {
      switch value {
      case .ascii(let text): headers.append(key, text)
      case .binary(let bytes): headers.append(key, Base64.encode(bytes))
      }
    }
  }
}

/// A list's element without the white space that RFC 9110 section 5.6.1 allows around its commas.
private func trimmed(
  _ part: Slice<UnsafeBufferPointer<UInt8>>
) -> Slice<UnsafeBufferPointer<UInt8>> {
  func isSpace(_ byte: UInt8) -> Bool { byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") }
  var part = part
  while let first = part.first, isSpace(first) { part = part.dropFirst() }
  while let last = part.last, isSpace(last) { part = part.dropLast() }
  return part
}
