import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineWire
import NIOCore
import Testing

struct InboxTests {
  private static func message(_ length: Int, _ number: Int) -> ReceivedMessage {
    // A slice of a larger read, as messages come.
    var read = ByteBuffer(repeating: 1, count: 64 * 1024)
    read.writeRepeatingByte(UInt8(truncatingIfNeeded: number), count: length)
    read.moveReaderIndex(forwardBy: 64 * 1024)
    return ReceivedMessage(payload: read, isCompressed: number % 3 == 0)
  }

  @Test("Messages are taken as they came, whatever their lengths", arguments: 0..<20)
  func anyOrder(seed: Int) {
    var random = SplitMix(seed: UInt64(seed))
    var (inbox, expected, number) = (Inbox(), [ReceivedMessage](), 0)
    for _ in 0..<2000 {
      #expect(inbox.isEmpty == expected.isEmpty)
      if Int.random(in: 0..<5, using: &random) < 3 {
        let length = [0, 1, 7, 511, 512, 513, 3000].randomElement(using: &random) ?? 0
        let message = Self.message(length, number)
        number += 1
        inbox.append(message)
        expected.append(message)
      } else {
        let taken = inbox.popFirst(isLast: Bool.random(using: &random))
        #expect(taken?.payload == expected.first?.payload)
        #expect(taken?.isCompressed == expected.first?.isCompressed)
        if !expected.isEmpty { expected.removeFirst() }
      }
    }
    inbox.removeAll()
    #expect(inbox.popFirst(isLast: true) == nil && inbox.isEmpty)
  }

  @Test(
    "What has been taken is let go, though there is always more behind it",
    arguments: [100, 513]
  )
  func slidingWindow(length: Int) throws {
    var inbox = Inbox()
    for number in 0..<100 { inbox.append(Self.message(length, number)) }
    for number in 100..<10_000 {
      inbox.append(Self.message(length, number))
      let popped = inbox.popFirst(isLast: false)
      let taken = try #require(popped)
      #expect(taken.payload.storageCapacity <= 64 * 1024)
      #expect(inbox.placesKept <= 300)
    }
  }
}
