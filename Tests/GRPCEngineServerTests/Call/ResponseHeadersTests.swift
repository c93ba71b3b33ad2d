import GRPCEngineHTTP2
import GRPCEngineWire
import Testing

@testable import GRPCEngineServer

struct ResponseHeadersTests {
  private let metadata: Metadata = {
    var metadata = Metadata()
    metadata.append(key: "x-text", value: .ascii("a"))
    metadata.append(key: "x-text", value: .ascii("b"))
    metadata.append(key: "x-bin", value: .binary([1, 2]))
    return metadata
  }()

  @Test("Initial headers say what the server can decompress, and what it compresses with")
  func initial() {
    let plain = ResponseHeaders.initial(nil, encoding: .identity)
    #expect(plain.first(":status") == "200")
    #expect(plain.first("content-type") == "application/grpc")
    #expect(plain.first("grpc-accept-encoding") == "identity, deflate, gzip")
    #expect(plain.first("grpc-encoding") == nil)
    let compressed = ResponseHeaders.initial(nil, encoding: .gzip)
    #expect(compressed.first("grpc-encoding") == "gzip")
  }

  @Test("Metadata keeps its order and its repeated keys, bytes as base64")
  func metadataOrder() {
    for headers in [
      ResponseHeaders.initial(self.metadata, encoding: .identity),
      ResponseHeaders.trailers(.ok, self.metadata),
    ] {
      #expect(headers.fields.suffix(3).map(\.name) == ["x-text", "x-text", "x-bin"])
      #expect(headers.fields.suffix(3).map(\.value) == ["a", "b", "AQI"])
    }
  }

  @Test("Trailers carry the code and the text, percent-encoded")
  func trailers() {
    #expect(ResponseHeaders.trailers(.ok, nil) == ["grpc-status": "0"])
    let status = Status(code: .notFound, details: "no “x”\n")
    #expect(
      ResponseHeaders.trailers(status, nil)
        == ["grpc-status": "5", "grpc-message": "no %E2%80%9Cx%E2%80%9D%0A"]
    )
    #expect(
      ResponseHeaders.trailers(Status(code: .ok, details: "fine"), nil)
        == ["grpc-status": "0", "grpc-message": "fine"]
    )
  }

  @Test("An answer without messages is one block that begins with the HTTP status")
  func trailersOnly() {
    let headers = ResponseHeaders.trailersOnly(["grpc-status": "5"])
    #expect(headers.fields.map(\.name) == [":status", "content-type", "grpc-status"])
  }
}
