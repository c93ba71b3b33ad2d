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
    let pieces = (0..<100).map { [UInt8](repeating: UInt8($0), count: 1000) }
    for piece in pieces { _ = self.write(piece) }
    self.channel.flush()
    let writes = try self.written()
    #expect(writes.allSatisfy { $0.count <= 32 * 1024 })
    #expect(writes.count == 4)
    #expect(writes.flatMap { $0 } == pieces.flatMap { $0 })
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
