import GRPCEngineHTTP2
import NIOCore
import Testing

struct OutgoingDataTests {
  @Test("What is written comes out in order, whatever the cuts, and holds little memory")
  func order() {
    var random = SystemRandomNumberGenerator()
    for _ in 0..<200 {
      let lengths = (0..<Int.random(in: 0...6, using: &random)).map { _ in
        [0, 1, 5, 4096, OutgoingData.pieceSize, 100_000].randomElement(using: &random) ?? 0
      }
      var data = OutgoingData(capacity: lengths.first ?? 0)
      var expected: [UInt8] = []
      for length in lengths {
        let bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
        bytes.withUnsafeBytes { data.write($0) }
        expected += bytes
        #expect(data.readableBytes == expected.count)
      }
      var found: [UInt8] = []
      while let part = data.readPart(atMost: Int.random(in: 1...50_000, using: &random)) {
        #expect(part.readableBytes > 0)
        #expect(part.storageCapacity <= OutgoingData.pieceSize)
        found += part.readableBytesView
        #expect(data.readableBytes == expected.count - found.count)
      }
      #expect(found == expected)
      #expect(data.readableBytes == 0)
    }
  }

  @Test("A little that is left of a piece does not keep the piece")
  func littleLeft() {
    for length in [OutgoingData.pieceSize, 3 * OutgoingData.pieceSize, 20_000] {
      for left in [1, 100, 4096, 9000] {
        var data = OutgoingData(capacity: length)
        [UInt8](repeating: 7, count: length).withUnsafeBytes { data.write($0) }
        while data.readableBytes > left, data.readPart(atMost: data.readableBytes - left) != nil {}
        #expect(data.readableBytes == left)
        let part = data.readPart(atMost: left)
        #expect(part?.readableBytes == left)
        #expect((part?.storageCapacity ?? 0) <= 2 * left)
      }
    }
  }
}
