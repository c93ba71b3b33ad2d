import GRPCEngineHTTP2
import GRPCEngineTransport
import GRPCEngineWire
import Testing

struct RequestHeadTests {
  private let plain: HeaderList = [
    ":method": "POST", ":scheme": "http", ":path": "/a.B/C", ":authority": "host",
    "content-type": "application/grpc", "te": "trailers",
  ]

  /// The plainest headers, with one of them changed in its place, or left out.
  private func plain(_ name: String, _ value: String?) -> HeaderList {
    var headers = HeaderList()
    for field in self.plain.fields where field.name != name || value != nil {
      headers.append(field.name, field.name == name ? value ?? "" : field.value)
    }
    return headers
  }

  private func head(
    _ change: (inout HeaderList) -> Void,
    maxSize: Int = 16_384
  ) throws(RequestHead.Rejection) -> RequestHead {
    var headers = self.plain
    change(&headers)
    return try RequestHead(HeaderBlock(received: headers), maxSize: maxSize)
  }

  private func rejection(
    maxSize: Int = 16_384,
    _ change: (inout HeaderList) -> Void
  ) -> RequestHead.Rejection? {
    do {
      _ = try self.head(change, maxSize: maxSize)
      return nil
    } catch {
      return error
    }
  }

  @Test("The plainest call has a path and nothing else")
  func plainest() throws {
    let head = try self.head { _ in }
    #expect(head.path == "/a.B/C")
    #expect(head.timeout == nil)
    #expect(head.encoding == .identity)
    #expect(head.accepts(.identity) && !head.accepts(.gzip) && !head.accepts(.deflate))
    #expect(head.headers == self.plain)
  }

  @Test(
    "A method other than POST is 405",
    arguments: ["GET", "post", "PUT", "OPTIONS", "CONNECT", ""]
  )
  func method(_ method: String) {
    #expect(self.rejection { $0 = self.plain(":method", method) } == .http(status: "405"))
  }

  @Test(
    "A content type that is not gRPC is 415",
    arguments: [
      "text/html", "application/json", "application/grpc-web", "application/grpcx", "", nil,
    ]
  )
  func contentType(_ type: String?) {
    #expect(self.rejection { $0 = self.plain("content-type", type) } == .http(status: "415"))
  }

  @Test("A request without a pseudo-header that it needs is malformed")
  func missing() {
    for name in [":method", ":scheme", ":path"] {
      #expect(self.rejection { $0 = self.plain(name, nil) } == .malformed)
    }
    #expect(self.rejection { $0 = self.plain(":path", "") } == .malformed)
    #expect(self.rejection { $0 = self.plain(":authority", nil) } == nil)
  }

  @Test(
    "A field that HTTP/2 does not allow makes the request malformed",
    arguments: [
      ("X-Upper", "a"), ("x y", "a"), ("x:", "a"), ("é", "a"), ("x", "a\u{0}"),
      ("x", "a\r\nb"), ("x", "\n"), ("connection", "close"), ("keep-alive", "1"),
      ("transfer-encoding", "chunked"), ("upgrade", "h2c"), ("proxy-connection", "a"),
      ("te", "gzip"), ("te", "Trailers"), ("te", ""),
      (":path", "/late"), (":method", "POST"), (":unknown", "a"), (":status", "200"),
    ]
  )
  func forbiddenField(_ name: String, _ value: String) {
    #expect(self.rejection { $0.append(name, value) } == .malformed)
  }

  @Test(
    "gRPC's content types are taken, subtypes and parameters included",
    arguments: ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
  )
  func grpcContentType(_ type: String) {
    #expect(self.rejection { $0 = self.plain("content-type", type) } == nil)
  }

  @Test("A call that does not say that it takes trailers is refused")
  func trailers() {
    let status = self.rejection { $0 = self.plain("te", nil) }?.status
    #expect(status == Status(code: .internalError, details: "Missing 'te: trailers' header"))
  }

  @Test(
    "A timeout is read",
    arguments: [("5S", Duration.seconds(5)), ("0n", .zero), ("1H", .seconds(3600))]
  )
  func timeout(_ value: String, _ expected: Duration) throws {
    #expect(try self.head { $0.append("grpc-timeout", value) }.timeout == expected)
  }

  @Test(
    "A malformed timeout is refused by its text",
    arguments: ["", "5", "S", "-1S", "999999999S"]
  )
  func malformedTimeout(_ value: String) {
    let status = self.rejection { $0.append("grpc-timeout", value) }?.status
    #expect(status == Status(code: .internalError, details: "Malformed grpc-timeout: \(value)"))
  }

  @Test(
    "A known encoding is taken",
    arguments: [
      ("identity", CompressionAlgorithm.identity), ("gzip", .gzip), ("deflate", .deflate),
    ]
  )
  func encoding(_ name: String, _ expected: CompressionAlgorithm) throws {
    #expect(try self.head { $0.append("grpc-encoding", name) }.encoding == expected)
  }

  @Test("An unknown encoding is UNIMPLEMENTED, and the answer says what is known")
  func unknownEncoding() {
    let rejection = self.rejection { $0.append("grpc-encoding", "br") }
    #expect(rejection?.status?.code == .unimplemented)
    #expect(rejection?.status?.details.contains("'br'") == true)
    #expect(rejection?.advertisesEncodings == true)
  }

  @Test(
    "What the peer can decompress is found among what it lists",
    arguments: [
      ("identity, deflate, gzip", true, true), ("identity,deflate,gzip", true, true),
      ("gzip", true, false), ("deflate", false, true), ("br,  gzip", true, false),
      ("identity", false, false), ("", false, false), ("xgzip,deflates", false, false),
    ]
  )
  func acceptEncoding(_ value: String, _ gzip: Bool, _ deflate: Bool) throws {
    let head = try self.head { $0.append("grpc-accept-encoding", value) }
    #expect(head.accepts(.gzip) == gzip)
    #expect(head.accepts(.deflate) == deflate)
    #expect(head.acceptsGzip == gzip && head.acceptsDeflate == deflate)
  }

  @Test("Headers count as RFC 9113 counts them, and one byte too many is RESOURCE_EXHAUSTED")
  func size() {
    let size = self.plain.fields.reduce(0) { $0 + $1.name.utf8.count + $1.value.utf8.count + 32 }
    #expect(self.rejection(maxSize: size) { _ in } == nil)
    let status = self.rejection(maxSize: size - 1) { _ in }?.status
    let details = "Received metadata size exceeds limit (\(size) vs. \(size - 1))"
    #expect(status == Status(code: .resourceExhausted, details: details))
  }

  @Test("A binary value that is not base64 is refused by its key")
  func malformedBinary() {
    let status = self.rejection { $0.append("x-bin", "!") }?.status
    #expect(status?.code == .internalError)
    #expect(status?.details.contains("'x-bin'") == true)
    #expect(self.rejection { $0.append("x-bin", "AQI") } == nil)
  }

  @Test("What is not gRPC at all is told so before anything else")
  func order() {
    let rejection = self.rejection(maxSize: 1) { headers in
      headers = self.plain("content-type", "text/html")
      headers.append("grpc-timeout", "soon")
    }
    #expect(rejection == .http(status: "415"))
  }
}

extension RequestHead.Rejection {
  fileprivate var status: Status? {
    if case .grpc(let status, _) = self { status } else { nil }
  }

  fileprivate var advertisesEncodings: Bool? {
    if case .grpc(_, let advertisesEncodings) = self { advertisesEncodings } else { nil }
  }
}
