import GRPCEngineWire
import NIOCore
import Testing

struct MessageFramerTests {
  @Test(
    "A prefix is the flag and the length in network order",
    arguments: [
      (false, 0, [0, 0, 0, 0, 0]),
      (true, 1, [1, 0, 0, 0, 1]),
      (false, 0x0102_0304, [0, 1, 2, 3, 4]),
      (true, Int(UInt32.max), [1, 255, 255, 255, 255]),
    ] as [(Bool, Int, [UInt8])]
  )
  func prefixes(compressed: Bool, length: Int, bytes: [UInt8]) {
    var buffer = ByteBuffer(string: "x")
    MessageFramer.writePrefix(compressed: compressed, length: length, into: &buffer)
    #expect(Array(buffer.readableBytesView) == Array("x".utf8) + bytes)
    #expect(MessageFramer.prefixLength == bytes.count)
  }
}
