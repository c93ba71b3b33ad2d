import GRPCEngineTransport
import NIOCore
import NIOEmbedded
import Testing

struct WriteCoalescerTests {
  private let channel = EmbeddedChannel(handler: WriteCoalescer())

  private func write(_ bytes: [UInt8]) -> EventLoopFuture<Void> {
    self.channel.write(IOData.byteBuffer(ByteBuffer(bytes: bytes)))
  }

  /// What the socket was given, write by write.
  private func written() throws -> [[UInt8]] {
    var writes: [[UInt8]] = []
    while let data = try self.channel.readOutbound(as: IOData.self) {
      guard case .byteBuffer(let bytes) = data else { continue }
      writes.append(Array(bytes.readableBytesView))
    }
    return writes
  }

  @Test("Small writes become one when they are flushed, and not before")
  func gathers() throws {
    let futures = [[1], [], [2, 3], [4]].map { self.write($0) }
    #expect(try self.written() == [])
    self.channel.flush()
    #expect(try self.written() == [[1, 2, 3, 4]])
    for future in futures { try future.wait() }
    self.channel.flush()
    #expect(try self.written() == [])
  }

  @Test("A large write goes by itself, behind the small ones before it")
  func largeWrites() throws {
    let large = [UInt8](repeating: 9, count: 3000)
    for bytes in [[1], [2], large, [3], large] { _ = self.write(bytes) }
    self.channel.flush()
    #expect(try self.written() == [[1, 2], large, [3], large])
  }

  @Test("What has been passed on is not changed by what comes after")
  func reuse() throws {
    for round in UInt8(0)..<3 {
      _ = self.write([round, round])
      self.channel.flush()
    }
    #expect(try self.written() == [[0, 0], [1, 1], [2, 2]])
  }

  @Test("No more than 32 KiB are gathered, and nothing is lost or moved")
  func capacity() throws {
    let pieces = (0..<100).map { number in
      // A frame of its length: what is none would not be let through as it is.
      [0, 3, 0xdf, 6, 0, 0, 0, 0, 0] + [UInt8](repeating: number, count: 991)
    }
    for piece in pieces { _ = self.write(piece) }
    self.channel.flush()
    let writes = try self.written()
    #expect(writes.allSatisfy { $0.count <= 32 * 1024 })
    #expect(writes.count == 4)
    #expect(writes.flatMap { $0 } == pieces.flatMap { $0 })
  }

  @Test("A frame that the peer does not take is written as several, and the promise is the last's")
  func split() throws {
    let content = [UInt8](repeating: 7, count: 20_000)
    let future = self.write([0, 0x4e, 0x20, 1, 4, 0, 0, 0, 1] + content)
    self.channel.flush()
    try future.wait()
    let bytes = try self.written().flatMap { $0 }
    #expect(Array(bytes.prefix(9)) == [0, 0x40, 0, 1, 0, 0, 0, 0, 1])
    #expect(Array(bytes.dropFirst(9 + 16_384).prefix(9)) == [0, 0x0e, 0x20, 9, 4, 0, 0, 0, 1])
    #expect(bytes.count == 20_000 + 2 * 9)
  }

  @Test("Promises of what was gathered fail when the socket does, before a flush")
  func failure() throws {
    let futures = [self.write([1]), self.write([2])]
    // As a socket does that reads an error: the pipeline is not asked.
    self.channel._channelCore.close0(error: ChannelError.eof, mode: .all, promise: nil)
    self.channel.embeddedEventLoop.run()
    for future in futures { #expect(throws: ChannelError.ioOnClosedChannel) { try future.wait() } }
  }
}
