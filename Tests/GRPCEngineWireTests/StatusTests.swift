import GRPCEngineWire
import Testing

struct StatusTests {
  @Test("Codes have the numbers and names of the specification")
  func codes() {
    let expected: [(StatusCode, Int, String)] = [
      (.ok, 0, "OK"),
      (.cancelled, 1, "CANCELLED"),
      (.unknown, 2, "UNKNOWN"),
      (.invalidArgument, 3, "INVALID_ARGUMENT"),
      (.deadlineExceeded, 4, "DEADLINE_EXCEEDED"),
      (.notFound, 5, "NOT_FOUND"),
      (.alreadyExists, 6, "ALREADY_EXISTS"),
      (.permissionDenied, 7, "PERMISSION_DENIED"),
      (.resourceExhausted, 8, "RESOURCE_EXHAUSTED"),
      (.failedPrecondition, 9, "FAILED_PRECONDITION"),
      (.aborted, 10, "ABORTED"),
      (.outOfRange, 11, "OUT_OF_RANGE"),
      (.unimplemented, 12, "UNIMPLEMENTED"),
      (.internalError, 13, "INTERNAL"),
      (.unavailable, 14, "UNAVAILABLE"),
      (.dataLoss, 15, "DATA_LOSS"),
      (.unauthenticated, 16, "UNAUTHENTICATED"),
    ]
    for (code, number, name) in expected {
      #expect(code.rawValue == number)
      #expect(StatusCode(rawValue: number) == code)
      #expect(code.name == name)
      #expect("\(code)" == name)
    }
  }

  @Test("Numbers that gRPC does not define are no codes", arguments: [-1, 17, .min, .max])
  func unknownCodes(number: Int) {
    #expect(StatusCode(rawValue: number) == nil)
  }

  @Test("A reset stream's error code becomes the status of PROTOCOL-HTTP2's table")
  func resetStreams() {
    let expected: [(Int, StatusCode)] = [
      (0x0, .internalError), (0x1, .internalError), (0x2, .internalError), (0x3, .internalError),
      (0x4, .internalError), (0x5, .unknown), (0x6, .internalError), (0x7, .unavailable),
      (0x8, .cancelled), (0x9, .internalError), (0xa, .internalError), (0xb, .resourceExhausted),
      (0xc, .permissionDenied), (0xd, .unknown), (0xff, .unknown), (-1, .unknown),
    ]
    for (errorCode, code) in expected {
      #expect(Status(http2ErrorCode: errorCode).code == code, "0x\(String(errorCode, radix: 16))")
    }
    #expect(Status(http2ErrorCode: 0xb).details.hasSuffix("0xb"))
  }
}
