import GRPCEngineWire
import Testing

struct ContentTypeTests {
  @Test(
    "gRPC's media type is known with subtype and parameters, in any case",
    arguments: [
      "application/grpc", "application/grpc+proto", "application/grpc+json", "application/grpc;x=y",
      "application/grpc ; x=y", "Application/GRPC", "APPLICATION/GRPC+PROTO", "application/grpc ",
    ]
  )
  func accepts(value: String) {
    #expect(ContentType.isGRPC(value))
  }

  @Test(
    "Other media types are not gRPC",
    arguments: [
      "", "application/grp", "application/grpcx", "application/grpc-web",
      "application/grpc-web+proto",
      "application/json", "text/plain", " application/grpc", "application/grpc x",
      "application/grpÇ",
      "application\u{0f}grpc", "application/grpc,text/plain",
    ]
  )
  func refuses(value: String) {
    #expect(!ContentType.isGRPC(value))
  }
}
