/// How a call ended: a code and a text for people.
public struct Status: Hashable, Sendable {
  public var code: StatusCode

  /// Any text; ``PercentEncoding`` makes a header value of it.
  public var details: String

  public init(code: StatusCode, details: String = "") {
    self.code = code
    self.details = details
  }

  public static let ok = Status(code: .ok)

  /// What a call ends with when its stream is reset before a status arrived.
  ///
  /// The table is the one under "Errors" in
  /// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors); codes
  /// it says nothing of (`STREAM_CLOSED`, `HTTP_1_1_REQUIRED` and unknown ones) are `UNKNOWN`.
  ///
  /// - Parameter errorCode: the HTTP/2 error code of the RST_STREAM frame (RFC 9113 section 7).
  public init(http2ErrorCode errorCode: Int) {
    let code: StatusCode
    switch errorCode {
    case 0x0, 0x1, 0x2, 0x3, 0x4, 0x6, 0x9, 0xa: code = .internalError
    case 0x7: code = .unavailable
    case 0x8: code = .cancelled
    case 0xb: code = .resourceExhausted
    case 0xc: code = .permissionDenied
    default: code = .unknown
    }
    self.init(
      code: code,
      details: "The stream was reset with HTTP/2 error code 0x\(String(errorCode, radix: 16))"
    )
  }
}
