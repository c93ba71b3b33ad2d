package import GRPCEngineWire
package import NIOHPACK

/// The headers that open a call, checked against "Requests" of gRPC's PROTOCOL-HTTP2.
package struct RequestHead: Sendable {
  /// `/package.Service/Method`, as it came.
  package var path: String
  /// Everything that came, pseudo-headers included.
  package var headers: HPACKHeaders
  /// `grpc-timeout`; `nil` when the call has no deadline.
  package var timeout: Duration?
  /// How the peer compresses messages whose compressed flag is set.
  package var encoding: CompressionAlgorithm
  /// What the peer can decompress, besides identity.
  package var acceptsGzip: Bool
  package var acceptsDeflate: Bool

  /// The answer to headers that open no call.
  package enum Rejection: Error {
    /// Not gRPC: a plain HTTP status ("HTTP2 Transport Mapping", `415` for the content type).
    case http(status: String)
    /// gRPC, but wrong: a trailers-only answer.
    case grpc(Status, advertisesEncodings: Bool)
  }

  /// - Parameter maxSize: the largest header list accepted.
  package init(_ headers: HPACKHeaders, maxSize: Int) throws(Rejection) {
    var size = 0
    var path: String?
    var method: String?
    var contentType: String?
    var hasTrailersTE = false
    var timeout: Duration?
    var encoding = CompressionAlgorithm.identity
    var unknownEncoding: String?
    var malformedTimeout: String?
    var hasBinaryMetadata = false
    self.acceptsGzip = false
    self.acceptsDeflate = false
    for (name, value, _) in headers {
      // RFC 9113 section 6.5.2: 32 bytes of overhead a field.
      size += name.utf8.count + value.utf8.count + 32
      // The length tells most names apart; comparing each with all of them is what costs.
      switch name.utf8.count {
      case 2 where name == "te":
        hasTrailersTE = hasTrailersTE || value == "trailers"
      case 5 where name == ":path":
        path = value
      case 7 where name == ":method":
        method = value
      case 12 where name == "content-type":
        contentType = value
      case 12 where name == "grpc-timeout":
        timeout = Timeout.parse(value)
        if timeout == nil { malformedTimeout = value }
      case 13 where name == "grpc-encoding":
        if let known = CompressionAlgorithm(name: value) {
          encoding = known
        } else {
          unknownEncoding = value
        }
      case 20 where name == "grpc-accept-encoding":
        (self.acceptsGzip, self.acceptsDeflate) = Self.readAcceptEncoding(value)
      default:
        hasBinaryMetadata = hasBinaryMetadata || Metadata.isBinaryKey(name)
      }
    }
    guard method == "POST" else { throw .http(status: "405") }
    guard let contentType, ContentType.isGRPC(contentType) else { throw .http(status: "415") }
    guard size <= maxSize else {
      let details = "Received metadata size exceeds limit (\(size) vs. \(maxSize))"
      throw .grpc(Status(code: .resourceExhausted, details: details), advertisesEncodings: false)
    }
    // RFC 9113 section 8.3.1 demands a path; one that names no method is the method table's affair.
    guard let path else { throw .http(status: "400") }
    guard hasTrailersTE else {
      throw .grpc(
        Status(code: .internalError, details: "Missing 'te: trailers' header"),
        advertisesEncodings: false
      )
    }
    if let malformedTimeout {
      throw .grpc(
        Status(code: .internalError, details: "Malformed grpc-timeout: \(malformedTimeout)"),
        advertisesEncodings: false
      )
    }
    if let unknownEncoding {
      throw .grpc(
        Status(
          code: .unimplemented,
          details: "Compression algorithm '\(unknownEncoding)' is not supported"
        ),
        advertisesEncodings: true
      )
    }
    if hasBinaryMetadata {
      do {
        _ = try Metadata(validating: headers)
      } catch {
        throw .grpc(error.status, advertisesEncodings: false)
      }
    }
    self.path = path
    self.headers = headers
    self.timeout = timeout
    self.encoding = encoding
  }

  private static func readAcceptEncoding(_ value: String) -> (gzip: Bool, deflate: Bool) {
    // What grpc's own clients send.
    if value == CompressionAlgorithm.acceptEncoding { return (true, true) }
    var result = (gzip: false, deflate: false)
    for item in value.split(separator: ",") {
      switch item.drop(while: { $0 == " " }) {
      case "gzip": result.gzip = true
      case "deflate": result.deflate = true
      default: break
      }
    }
    return result
  }

  /// Whether the peer can read messages compressed with `algorithm`.
  package func accepts(_ algorithm: CompressionAlgorithm) -> Bool {
    switch algorithm {
    case .identity: true
    case .gzip: self.acceptsGzip
    case .deflate: self.acceptsDeflate
    }
  }
}
