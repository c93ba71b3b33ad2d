package import GRPCEngineHTTP2
package import GRPCEngineWire

/// The headers that open a call, checked against "Requests" of gRPC's PROTOCOL-HTTP2.
package struct RequestHead: Sendable {
  /// `/package.Service/Method`, as it came.
  package var path: String
  /// Everything that came, pseudo-headers included.
  package var headers: HeaderList
  /// `grpc-timeout`; `nil` when the call has no deadline.
  package var timeout: Duration?
  /// How the peer compresses messages whose compressed flag is set.
  package var encoding: CompressionAlgorithm
  /// What the peer can decompress, besides identity.
  package var acceptsGzip: Bool
  package var acceptsDeflate: Bool
  /// The size of the header list, as RFC 9113 section 6.5.2 counts it.
  package var size: Int

  /// The answer to headers that open no call.
  package enum Rejection: Error, Equatable {
    /// No request of HTTP/2 (RFC 9113 section 8.1.1): the stream is reset with PROTOCOL_ERROR.
    case malformed
    /// Not gRPC: a plain HTTP status ("HTTP2 Transport Mapping", `415` for the content type).
    case http(status: String)
    /// gRPC, but wrong: a trailers-only answer.
    case grpc(Status, advertisesEncodings: Bool = false)
  }

  /// - Parameter maxSize: the largest header list accepted.
  package init(_ block: HeaderBlock, maxSize: Int) throws(Rejection) {
    let headers = block.list
    var fields = Fields()
    for field in headers.fields {
      guard fields.read(field) else { throw .malformed }
    }
    // Of a list that is too large, only the beginning has been kept.
    let excess = block.size > maxSize ? Self.excess(block.size, maxSize) : nil
    // RFC 9113 section 8.3.1; CONNECT is the one method that has neither scheme nor path.
    guard let method = fields.method, method.utf8.count == 4, method == "POST" else {
      throw fields.method == nil ? excess ?? .malformed : .http(status: "405")
    }
    guard let scheme = fields.scheme, !scheme.isEmpty, let path = fields.path, !path.isEmpty else {
      throw excess ?? .malformed
    }
    guard let contentType = fields.contentType, ContentType.isGRPC(contentType) else {
      throw (fields.contentType == nil ? excess : nil) ?? .http(status: "415")
    }
    if let excess { throw excess }
    guard fields.hasTE else {
      throw .grpc(Status(code: .internalError, details: "Missing 'te: trailers' header"))
    }
    if let timeout = fields.timeout {
      self.timeout = Timeout.parse(timeout)
      guard self.timeout != nil else {
        throw .grpc(
          Status(code: .internalError, details: "Malformed grpc-timeout: \(Self.shown(timeout))")
        )
      }
    }
    self.encoding = .identity
    if let name = fields.encoding {
      guard let encoding = CompressionAlgorithm(name: name) else {
        let details = "Compression algorithm '\(Self.shown(name))' is not supported"
        throw .grpc(Status(code: .unimplemented, details: details), advertisesEncodings: true)
      }
      self.encoding = encoding
    }
    if fields.hasBinaryMetadata {
      do {
        _ = try Metadata(validating: headers)
      } catch {
        throw .grpc(error.status)
      }
    }
    self.path = path
    self.headers = headers
    self.size = block.size
    (self.acceptsGzip, self.acceptsDeflate) = Self.readAcceptEncoding(fields.acceptEncoding)
  }

  private static func excess(_ size: Int, _ maxSize: Int) -> Rejection {
    let details = "Received metadata size exceeds limit (\(size) vs. \(maxSize))"
    return .grpc(Status(code: .resourceExhausted, details: details))
  }

  /// What is told of a value that is wrong: its beginning, of a long one.
  private static func shown(_ value: String) -> String {
    value.utf8.count <= 100 ? value : value.cut(toBytes: 100) + "…"
  }

  /// Whether a peer's trailers are well-formed; gRPC gives those of a client no meaning.
  package static func areTrailers(_ headers: HeaderList) -> Bool {
    headers.fields.allSatisfy { !$0.isMalformed && !$0.isPseudo }
  }

  /// The fields that matter, as they come.
  ///
  /// This runs for each field of each call, so the length tells most names apart: comparing each
  /// with all of them is what would cost, and Swift compares strings by what they mean, which takes
  /// long for some.
  private struct Fields {
    var method: String?
    var path: String?
    var contentType: String?
    var timeout: String?
    var encoding: String?
    var acceptEncoding: String?
    var scheme: String?
    var hasAuthority = false
    var hasTE = false
    var hasBinaryMetadata = false
    private var isPastPseudoHeaders = false

    /// - Returns: whether the field is one that HTTP/2 allows here (RFC 9113 sections 8.2, 8.3).
    mutating func read(_ field: HeaderField) -> Bool {
      guard !field.isMalformed else { return false }
      let (name, value) = (field.name, field.value)
      if field.isPseudo { return self.readPseudoHeader(name, value) }
      self.isPastPseudoHeaders = true
      switch name.utf8.count {
      case 2 where name == "te":
        self.hasTE = true
        return value.utf8.count == 8 && value == "trailers"
      case 12 where name == "content-type": self.contentType = value
      case 12 where name == "grpc-timeout": self.timeout = value
      case 13 where name == "grpc-encoding": self.encoding = value
      case 20 where name == "grpc-accept-encoding": self.acceptEncoding = value
      default:
        self.hasBinaryMetadata = self.hasBinaryMetadata || Metadata.isBinaryKey(name)
      }
      return true
    }

    /// Each comes once, and before everything else.
    private mutating func readPseudoHeader(_ name: String, _ value: String) -> Bool {
      guard !self.isPastPseudoHeaders else { return false }
      switch name.utf8.count {
      case 5 where name == ":path" && self.path == nil: self.path = value
      case 7 where name == ":method" && self.method == nil: self.method = value
      case 7 where name == ":scheme" && self.scheme == nil: self.scheme = value
      case 10 where name == ":authority" && !self.hasAuthority: self.hasAuthority = true
      default: return false
      }
      return true
    }
  }

  private static func readAcceptEncoding(_ value: String?) -> (gzip: Bool, deflate: Bool) {
    guard let value else { return (false, false) }
    // What grpc's own clients send.
    let usual = CompressionAlgorithm.acceptEncoding
    if value.utf8.count == usual.utf8.count, value == usual { return (true, true) }
    var result = (gzip: false, deflate: false)
    for item in value.utf8.split(separator: UInt8(ascii: ",")) {
      let name = item.drop { $0 == UInt8(ascii: " ") }
      if name.elementsEqual("gzip".utf8) { result.gzip = true }
      if name.elementsEqual("deflate".utf8) { result.deflate = true }
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
