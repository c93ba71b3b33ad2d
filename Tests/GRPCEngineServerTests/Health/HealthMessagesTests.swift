import GRPCEngineServer
import NIOCore
import Testing

struct HealthMessagesTests {
  private func service(_ bytes: [UInt8]) throws -> String {
    try HealthMessages.service(of: ByteBuffer(bytes: bytes))
  }

  private static func group(depth: Int) -> [UInt8] {
    [UInt8](repeating: 0x13, count: depth) + [UInt8](repeating: 0x14, count: depth)
  }

  @Test(
    "A request names its service, whatever else it has",
    arguments: [
      ([], ""),
      ([0x0a, 0], ""),
      ([0x0a, 2, 0x61, 0x62], "ab"),
      // A length in more bytes than it needs.
      ([0x0a, 0x82, 0x80, 0x00, 0x61, 0x62], "ab"),
      // The last one counts.
      ([0x0a, 1, 0x61, 0x0a, 1, 0x62], "b"),
      // Field 1 of another type is another field.
      ([0x0a, 1, 0x61, 0x08, 5], "a"),
      // Unknown: a varint, 64 bits, a length, a group with a varint in it, 32 bits.
      ([0x10, 0xff, 0x01, 0x0a, 1, 0x61], "a"),
      ([0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x0a, 1, 0x61], "a"),
      ([0x12, 1, 0xff, 0x0a, 1, 0x61], "a"),
      ([0x13, 0x08, 1, 0x14, 0x0a, 1, 0x61], "a"),
      ([0x15, 1, 2, 3, 4, 0x0a, 1, 0x61], "a"),
      (HealthMessagesTests.group(depth: 100), ""),
      ([0x0a, 2, 0xc3, 0xa9], "é"),
    ] as [([UInt8], String)]
  )
  func request(bytes: [UInt8], service: String) throws {
    #expect(try self.service(bytes) == service)
  }

  @Test(
    "What is no request is refused",
    arguments: [
      [0x0a],
      [0x0a, 2, 0x61],
      // A length beyond 31 bits.
      [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
      [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
      // Field 0; a tag beyond 32 bits; one that never ends.
      [0x02, 0],
      [0x8a, 0x80, 0x80, 0x80, 0x70, 0],
      [0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
      // Wire types that there are not.
      [0x0e], [0x0f],
      // A varint that never ends, or has eleven bytes.
      [0x10, 0x80],
      [0x10] + [UInt8](repeating: 0x80, count: 10) + [0],
      [0x11, 1, 2, 3, 4, 5, 6, 7],
      [0x15, 1, 2, 3],
      // Groups: without an end, with another's, an end alone, too deep.
      [0x13], [0x13, 0x1c], [0x14],
      HealthMessagesTests.group(depth: 101),
      // Not UTF-8: a lone continuation, a surrogate.
      [0x0a, 1, 0x80],
      [0x0a, 3, 0xed, 0xa0, 0x80],
    ] as [[UInt8]]
  )
  func malformed(bytes: [UInt8]) {
    #expect(throws: ProtobufReader.Malformed()) { try self.service(bytes) }
  }

  @Test("A list request may have any fields, and must be a message")
  func listRequest() throws {
    try HealthMessages.checkListRequest(ByteBuffer())
    try HealthMessages.checkListRequest(ByteBuffer(bytes: [0x0a, 1, 0xff]))
    #expect(throws: ProtobufReader.Malformed()) {
      try HealthMessages.checkListRequest(ByteBuffer(bytes: [0x0a, 1]))
    }
  }

  @Test("A response has its number, and the default has none")
  func response() {
    #expect(HealthMessages.response(.unknown) == [])
    #expect(HealthMessages.response(.serving) == [8, 1])
    #expect(HealthMessages.response(.notServing) == [8, 2])
    #expect(HealthMessages.response(.serviceUnknown) == [8, 3])
  }

  @Test("A list has an entry for each service, by name, however long that is")
  func listResponse() {
    #expect(HealthMessages.listResponse([:]) == [])
    #expect(
      HealthMessages.listResponse(["b": .notServing, "": .unknown])
        == [0x0a, 4, 0x0a, 0, 0x12, 0] + [0x0a, 7, 0x0a, 1, 0x62, 0x12, 2, 8, 2]
    )
    let name = String(repeating: "a", count: 200)
    #expect(
      HealthMessages.listResponse([name: .serving])
        == [0x0a, 207, 1, 0x0a, 200, 1] + [UInt8](repeating: 0x61, count: 200) + [0x12, 2, 8, 1]
    )
  }
}
