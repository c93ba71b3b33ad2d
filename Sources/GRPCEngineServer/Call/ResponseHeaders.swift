internal import GRPCEngineHTTP2
internal import GRPCEngineWire

/// Header blocks of answers ("Responses" in gRPC's PROTOCOL-HTTP2).
///
/// The common ones are made once; HPACK then writes each field of them as one byte.
enum ResponseHeaders {
  /// What a header block may measure, by RFC 9113 section 6.5.2: the sum of its names, values and 32
  /// bytes a field. HPACK may write it as nearly four times that.
  static let largest = 64 * 1024
  /// The most of a status's details that is sent, in bytes of their percent-encoding. A longer one would
  /// cost a client the status: gRPC's C core takes 8 KiB of headers without question (its
  /// `grpc.max_metadata_size`), and none past 16 KiB.
  private static let longestDetails = 7 * 1024

  static let plainOK = HeaderList([HeaderField("grpc-status", "0", isRepeated: true)])

  /// What begins every answer of gRPC.
  static let beginning = HeaderList([
    HeaderField(":status", "200"),
    HeaderField("content-type", "application/grpc", isRepeated: true),
  ])

  static func initial(
    _ metadata: Metadata?,
    encoding: CompressionAlgorithm,
    enabled: EnabledCompression = .all
  ) -> HeaderList {
    if metadata == nil, encoding == .identity { return enabled.headers }
    var headers = enabled.headers
    if encoding != .identity { headers.append("grpc-encoding", encoding.name) }
    metadata?.append(to: &headers)
    return headers
  }

  static func trailers(_ status: Status, _ metadata: Metadata?) -> HeaderList {
    if metadata == nil, status.code == .ok, status.details.isEmpty { return Self.plainOK }
    var headers: HeaderList = ["grpc-status": String(status.code.rawValue)]
    if !status.details.isEmpty {
      headers.append("grpc-message", Self.encoded(status.details))
    }
    metadata?.append(to: &headers)
    return headers
  }

  private static func encoded(_ details: String) -> String {
    let encoded = PercentEncoding.encode(details.cut(toBytes: Self.longestDetails))
    guard encoded.utf8.count > Self.longestDetails else { return encoded }
    // No byte becomes more than three.
    return PercentEncoding.encode(details.cut(toBytes: Self.longestDetails / 3))
  }

  /// Whether a header block is so large that it is not sent.
  static func isTooLarge(_ headers: HeaderList) -> Bool {
    headers.size > Self.largest
  }

  /// What takes the place of metadata that is too large.
  static let tooLarge = Status(
    code: .resourceExhausted,
    details: "The server's metadata is larger than \(ResponseHeaders.largest) bytes"
  )

  /// A whole answer without messages, in one header block.
  static func trailersOnly(_ trailers: HeaderList) -> HeaderList {
    var headers = Self.beginning
    headers.append(contentsOf: trailers)
    return headers
  }
}
