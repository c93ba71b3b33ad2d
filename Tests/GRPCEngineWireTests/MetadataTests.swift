import GRPCEngineHTTP2
import GRPCEngineWire
import Testing

struct MetadataTests {
  @Test(
    "Keys are lower-case letters, digits, underscore, hyphen and dot",
    arguments: [
      ("a", true), ("x-request-id", true), ("a.b_c-9", true), ("trace-bin", true),
      ("", false), ("X-A", false), (":path", false), ("a b", false), ("ä", false), ("a\n", false),
      ("a!", false), ("a/b", false), ("a\u{0}", false),
    ]
  )
  func keys(key: String, isValid: Bool) {
    #expect(Metadata.isValidKey(key) == isValid)
  }

  @Test(
    "Text values are printable ASCII",
    arguments: [
      ("", true), (" a~ ", true), ("100%", true),
      ("\t", false), ("a\n", false), ("\u{7f}", false), ("é", false), ("\u{0}", false),
    ]
  )
  func values(value: String, isValid: Bool) {
    #expect(Metadata.isValidASCIIValue(value) == isValid)
  }

  @Test(
    "A key is binary when it ends in -bin",
    arguments: [
      ("a-bin", true), ("-bin", true), ("bin", false), ("a-bin2", false), ("abin", false),
      ("", false),
    ]
  )
  func binaryKeys(key: String, isBinary: Bool) {
    #expect(Metadata.isBinaryKey(key) == isBinary)
  }

  @Test(
    "Applications cannot send what the transport says",
    arguments: [
      ":status", ":\u{305}", "content-type", "content-length", "te", "connection", "keep-alive",
      "proxy-connection", "transfer-encoding", "upgrade", "grpc-status", "grpc-message",
      "grpc-encoding", "grpc-accept-encoding", "grpc-timeout", "grpc-internal-encoding-request",
    ]
  )
  func reserved(key: String) {
    #expect(Metadata.isReserved(key))
  }

  @Test(
    "Applications can send what grpcio lets them send",
    arguments: [
      "grpc-status-details-bin", "grpc-retry-pushback-ms", "grpc-previous-rpc-attempts", "grpc-foo",
      "user-agent", "cookie", "date", "host", "x", "ttl", "customer", "",
    ]
  )
  func notReserved(key: String) {
    #expect(!Metadata.isReserved(key))
  }

  @Test("An application sees a peer's headers in order, without what the transport consumed")
  func received() {
    let headers: HeaderList = [
      ":method": "POST", ":path": "/a.B/C", "te": "trailers", "content-type": "application/grpc",
      "grpc-timeout": "1S", "user-agent": "ua/1", "x-a": "1", "grpc-encoding": "gzip",
      "grpc-accept-encoding": "gzip", "x-b": "", "x-a": "2", "grpc-message-type": "M",
      "grpc-previous-rpc-attempts": "1", "grpc-trace-bin": "AA", "grpc-tags-bin": "AA",
      "grpc-server-stats-bin": "AA", "lb-cost-bin": "AA", "x-envoy-peer-metadata": "z",
      "endpoint-load-metrics-bin": "AA", "grpc-status": "3", "grpc-message": "m",
      "grpc-internal-encoding-request": "gzip", "host": "h", "x-bin": "AAE",
    ]
    expect(
      Metadata(received: headers),
      [
        ("user-agent", .ascii("ua/1")), ("x-a", .ascii("1")), ("x-b", .ascii("")),
        ("x-a", .ascii("2")), ("grpc-message-type", .ascii("M")),
        ("grpc-previous-rpc-attempts", .ascii("1")), ("host", .ascii("h")),
        ("x-bin", .binary([0, 1])),
      ]
    )
  }

  @Test("A call without custom headers has no metadata")
  func nothingReceived() {
    expect(Metadata(received: [":method": "POST", "te": "trailers"]), [])
  }

  @Test("Binary values joined by commas become entries of their own")
  func joinedValues() throws {
    let headers: HeaderList = ["x-bin": "AAE=,AAI, \tAAM ,", "y-bin": ""]
    expect(
      try Metadata(validating: headers),
      [
        ("x-bin", .binary([0, 1])), ("x-bin", .binary([0, 2])), ("x-bin", .binary([0, 3])),
        ("x-bin", .binary([])), ("y-bin", .binary([])),
      ]
    )
  }

  @Test("A binary value that is not base64 fails the call, or is left out where nobody asks")
  func malformedValues() {
    let headers: HeaderList = ["x": "1", "x-bin": "AAE,!", "y-bin": "?"]
    expect(Metadata(received: headers), [("x", .ascii("1")), ("x-bin", .binary([0, 1]))])
    let error = #expect(throws: MalformedMetadata.self) { try Metadata(validating: headers) }
    #expect(
      error?.status
        == Status(
          code: .internalError,
          details: "Error parsing 'x-bin' metadata: illegal base64 encoding"
        )
    )
  }

  @Test("What is sent comes back, repeated keys and their order included")
  func roundTrips() {
    var metadata = Metadata()
    metadata.append(key: "a", value: .ascii("1"))
    metadata.append(key: "b-bin", value: .binary([255, 0, 44]))
    metadata.append(key: "a", value: .ascii(""))
    metadata.append(key: "b-bin", value: .binary([]))
    var headers: HeaderList = [":status": "200"]
    metadata.append(to: &headers)
    #expect(headers == [":status": "200", "a": "1", "b-bin": "/wAs", "a": "", "b-bin": ""])
    expect(Metadata(received: headers), metadata.entries)
  }

  @Test("A key that HTTP/2 cannot carry is left out, not trapped on")
  func impossibleKeys() {
    var metadata = Metadata()
    for key in ["ä", "", ":status", "UPPER", "ok"] {
      metadata.append(key: key, value: .ascii("v"))
    }
    var headers = HeaderList()
    metadata.append(to: &headers)
    #expect(headers == ["ok": "v"])
  }

  private func expect(
    _ metadata: Metadata,
    _ expected: [(String, Metadata.Value)],
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    #expect(metadata.entries.map(\.key) == expected.map(\.0), sourceLocation: sourceLocation)
    #expect(metadata.entries.map(\.value) == expected.map(\.1), sourceLocation: sourceLocation)
  }

  @Test("A list of binary values has 64 at most")
  func longLists() throws {
    let list: HeaderList = ["a-bin": Array(repeating: "AQ", count: 64).joined(separator: ",")]
    #expect(try Metadata(validating: list).entries.count == 64)
    for value in [String(repeating: ",", count: 64), String(repeating: ",", count: 4000)] {
      #expect(throws: MalformedMetadata.self) { try Metadata(validating: ["a-bin": value]) }
    }
  }
}
