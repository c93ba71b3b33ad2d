import GRPCEngineTransport
import GRPCEngineWire
import NIOHPACK
import Testing

struct RequestHeadTests {
  private let plain: HPACKHeaders = [
    ":method": "POST", ":scheme": "http", ":path": "/a.B/C", ":authority": "host",
    "content-type": "application/grpc", "te": "trailers",
  ]

  private func head(
    _ change: (inout HPACKHeaders) -> Void, maxSize: Int = 16_384
  ) throws(RequestHead.Rejection) -> RequestHead {
    var headers = self.plain
    change(&headers)
    return try RequestHead(headers, maxSize: maxSize)
  }

  private func rejection(
    maxSize: Int = 16_384, _ change: (inout HPACKHeaders) -> Void
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
    "A method other than POST is 405", arguments: ["GET", "post", "PUT", "OPTIONS", "CONNECT", ""]
  )
  func method(_ method: String) {
    let rejection = self.rejection { $0.replaceOrAdd(name: ":method", value: method) }
    #expect(rejection?.httpStatus == "405")
  }

  @Test(
    "A content type that is not gRPC is 415",
    arguments: ["text/html", "application/json", "application/grpc-web", "application/grpcx", ""]
  )
  func contentType(_ type: String) {
    #expect(
      self.rejection { $0.replaceOrAdd(name: "content-type", value: type) }?.httpStatus == "415"
    )
  }

  @Test("A missing content type is 415, a missing path 400, a missing method 405")
  func missing() {
    #expect(self.rejection { $0.remove(name: "content-type") }?.httpStatus == "415")
    #expect(self.rejection { $0.remove(name: ":path") }?.httpStatus == "400")
    #expect(self.rejection { $0.remove(name: ":method") }?.httpStatus == "405")
  }

  @Test(
    "gRPC's content types are taken, subtypes and parameters included",
    arguments: ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
  )
  func grpcContentType(_ type: String) {
    #expect(self.rejection { $0.replaceOrAdd(name: "content-type", value: type) } == nil)
  }

  @Test("A call that does not take trailers is refused", arguments: [nil, "", "gzip", "Trailers"])
  func trailers(_ value: String?) {
    let rejection = self.rejection { headers in
      headers.remove(name: "te")
      if let value { headers.add(name: "te", value: value) }
    }
    #expect(rejection?.status?.code == .internalError)
    #expect(rejection?.status?.details.contains("te: trailers") == true)
  }

  @Test(
    "A timeout is read", arguments: [("5S", Duration.seconds(5)), ("0n", .zero), ("1H", .seconds(3600))]
  )
  func timeout(_ value: String, _ expected: Duration) throws {
    #expect(try self.head { $0.add(name: "grpc-timeout", value: value) }.timeout == expected)
  }

  @Test("A malformed timeout is refused by its text", arguments: ["", "5", "S", "-1S", "999999999S"])
  func malformedTimeout(_ value: String) {
    let status = self.rejection { $0.add(name: "grpc-timeout", value: value) }?.status
    #expect(status == Status(code: .internalError, details: "Malformed grpc-timeout: \(value)"))
  }

  @Test(
    "A known encoding is taken",
    arguments: [("identity", CompressionAlgorithm.identity), ("gzip", .gzip), ("deflate", .deflate)]
  )
  func encoding(_ name: String, _ expected: CompressionAlgorithm) throws {
    #expect(try self.head { $0.add(name: "grpc-encoding", value: name) }.encoding == expected)
  }

  @Test("An unknown encoding is UNIMPLEMENTED, and the answer says what is known")
  func unknownEncoding() {
    let rejection = self.rejection { $0.add(name: "grpc-encoding", value: "br") }
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
    let head = try self.head { $0.add(name: "grpc-accept-encoding", value: value) }
    #expect(head.accepts(.gzip) == gzip)
    #expect(head.accepts(.deflate) == deflate)
    #expect(head.acceptsGzip == gzip && head.acceptsDeflate == deflate)
  }

  @Test("Headers count as RFC 9113 counts them, and one byte too many is RESOURCE_EXHAUSTED")
  func size() {
    let size = self.plain.reduce(0) { $0 + $1.name.utf8.count + $1.value.utf8.count + 32 }
    #expect(self.rejection(maxSize: size) { _ in } == nil)
    let status = self.rejection(maxSize: size - 1) { _ in }?.status
    let details = "Received metadata size exceeds limit (\(size) vs. \(size - 1))"
    #expect(status == Status(code: .resourceExhausted, details: details))
  }

  @Test("A binary value that is not base64 is refused by its key")
  func malformedBinary() {
    let status = self.rejection { $0.add(name: "x-bin", value: "!") }?.status
    #expect(status?.code == .internalError)
    #expect(status?.details.contains("'x-bin'") == true)
    #expect(self.rejection { $0.add(name: "x-bin", value: "AQI") } == nil)
  }

  @Test("What is not gRPC at all is told so before anything else")
  func order() {
    let rejection = self.rejection(maxSize: 1) { headers in
      headers.replaceOrAdd(name: "content-type", value: "text/html")
      headers.remove(name: "te")
      headers.add(name: "grpc-timeout", value: "soon")
    }
    #expect(rejection?.httpStatus == "415")
  }
}

extension RequestHead.Rejection {
  fileprivate var httpStatus: String? {
    if case .http(let status) = self { status } else { nil }
  }

  fileprivate var status: Status? {
    if case .grpc(let status, _) = self { status } else { nil }
  }

  fileprivate var advertisesEncodings: Bool? {
    if case .grpc(_, let advertisesEncodings) = self { advertisesEncodings } else { nil }
  }
}
