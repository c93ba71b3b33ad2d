import GRPCEngineTesting
import GRPCEngineWire
import Testing
import WireFuzz

struct ProtobufWriterTests {
  private static func bytes(_ write: (ProtobufWriter) -> Void) -> [UInt8] {
    let writer = ProtobufWriter(capacity: 1)
    write(writer)
    return writer.withContents { Array($0) }
  }

  @Test(
    "A varint has seven bits a byte",
    arguments: [
      (0, [0x00]), (1, [0x01]), (127, [0x7f]), (128, [0x80, 0x01]), (300, [0xac, 0x02]),
      (1 << 63, [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]),
    ] as [(UInt64, [UInt8])]
  )
  func varints(value: UInt64, expected: [UInt8]) {
    #expect(Self.bytes { $0.writeVarint(value) } == expected)
  }

  @Test("A negative number takes ten bytes")
  func negative() {
    #expect(Self.bytes { $0.writeVarint(-1 as Int64) } == Array(repeating: 0xff, count: 9) + [0x01])
  }

  @Test("Fixed numbers are little-endian")
  func fixed() {
    #expect(Self.bytes { $0.writeFixed(0x0102_0304 as UInt32) } == [4, 3, 2, 1])
    #expect(Self.bytes { $0.writeFixed(1 as UInt64) } == [1, 0, 0, 0, 0, 0, 0, 0])
  }

  /// Its body was lost where the length was written at the end of the memory that there was.
  @Test("A length is filled in wherever the memory ends", arguments: 0..<600)
  func lengths(before: Int) {
    for length in [0, 1, 2, 8, 127, 128, 300] {
      let body = (0..<length).map { UInt8(truncatingIfNeeded: $0 + 1) }
      let padding = Array(repeating: 0xee as UInt8, count: before)
      let written = Self.bytes { writer in
        padding.withUnsafeBytes { writer.write($0) }
        let begin = writer.beginLength(tag: 10)
        body.withUnsafeBytes { writer.write($0) }
        writer.endLength(begin)
      }
      let prefix =
        length < 128 ? [UInt8(length)] : [UInt8(length & 0x7f) | 0x80, UInt8(length >> 7)]
      #expect(written == padding + [10] + prefix + body)
    }
  }

  @Test("Memory is used again, what was in it is gone")
  func removing() {
    let written = Self.bytes { writer in
      writer.writeVarint(300 as UInt64)
      writer.removeAll()
      writer.writeVarint(1 as UInt64)
    }
    #expect(written == [1])
  }

  @Test("Nested messages parse again", arguments: 0..<200 as Range<UInt64>)
  func nesting(seed: UInt64) {
    var random = SplitMix(seed: seed)
    let script = (0..<Int.random(in: 0..<400, using: &random)).map { _ in
      UInt8.random(in: .min ... .max, using: &random)
    }
    #expect(WireProperty.firstViolation(by: [WireProperty.protobuf] + script) == nil)
  }
}
