internal import GRPCEngineWire
internal import NIOHPACK

/// Header blocks of answers ("Responses" in gRPC's PROTOCOL-HTTP2).
///
/// The common ones are made once; HPACK then writes each field of them as one byte.
enum ResponseHeaders {
  static let plainOK: HPACKHeaders = ["grpc-status": "0"]

  static func initial(
    _ metadata: Metadata?,
    encoding: CompressionAlgorithm,
    enabled: EnabledCompression = .all
  ) -> HPACKHeaders {
    if metadata == nil, encoding == .identity { return enabled.headers }
    var headers = enabled.headers
    if encoding != .identity { headers.add(name: "grpc-encoding", value: encoding.name) }
    metadata?.append(to: &headers)
    return headers
  }

  static func trailers(_ status: Status, _ metadata: Metadata?) -> HPACKHeaders {
    if metadata == nil, status.code == .ok, status.details.isEmpty { return Self.plainOK }
    var headers: HPACKHeaders = ["grpc-status": String(status.code.rawValue)]
    if !status.details.isEmpty {
      headers.add(name: "grpc-message", value: PercentEncoding.encode(status.details))
    }
    metadata?.append(to: &headers)
    return headers
  }

  /// A whole answer without messages, in one header block.
  static func trailersOnly(_ trailers: HPACKHeaders) -> HPACKHeaders {
    var headers: HPACKHeaders = [":status": "200", "content-type": "application/grpc"]
    headers.add(contentsOf: trailers)
    return headers
  }
}
