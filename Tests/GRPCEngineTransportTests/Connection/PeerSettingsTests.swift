import GRPCEngineTesting
import GRPCEngineTransport
import NIOCore
import Testing

struct PeerSettingsTests {
  private static let acknowledgement: [UInt8] = [0, 0, 0, 4, 1, 0, 0, 0, 0]

  private static func bytes(_ write: (inout FrameWriter) -> Void) -> [UInt8] {
    var writer = FrameWriter()
    write(&writer)
    return Array(writer.take().readableBytesView)
  }

  private static let greeting = bytes { writer in
    writer.preface()
    writer.settings([(4, 100_000)])
  }
  /// What NIOHTTP2 sees of it.
  private static let told = bytes { writer in
    writer.preface()
    writer.settings([(4, 100_000), (5, UInt32(FrameSplitter.told))])
  }
  private static func calls(settings: [(UInt16, UInt32)] = []) -> [UInt8] {
    Self.bytes { writer in
      writer.headers(FrameWriter.request("/a/b"), on: 1)
      // What looks like an acknowledgement inside of a frame is none.
      writer.data(ByteBuffer(bytes: Self.acknowledgement), on: 1, isEnd: true)
      writer.settings(settings)
    }
  }
  private static let rest = bytes { writer in
    writer.settingsAck()
    writer.ping(7)
  }

  /// What comes out when `bytes` come in pieces.
  private func passed(_ bytes: [UInt8], by length: Int) -> (bytes: [UInt8], isComplete: Bool) {
    var settings = PeerSettings()
    var passed = ByteBuffer()
    var left = ByteBuffer(bytes: bytes)
    while let piece = left.readSlice(length: min(length, left.readableBytes)),
      piece.readableBytes > 0
    {
      passed.writeImmutableBuffer(settings.received(piece))
    }
    return (Array(passed.readableBytesView), settings.isComplete)
  }

  @Test("One acknowledgement is given behind the greeting, and the peer's first is kept")
  func exchange() {
    let bytes = Self.greeting + Self.calls() + Self.acknowledgement + Self.rest
    let told = Self.calls(settings: [(5, UInt32(FrameSplitter.told))])
    let expected = Self.told + Self.acknowledgement + told + Self.rest
    for length in 1...bytes.count {
      let result = self.passed(bytes, by: length)
      #expect(result.bytes == expected, "in pieces of \(length)")
      #expect(result.isComplete)
    }
  }

  @Test("Settings without values are a greeting too")
  func emptySettings() {
    let greeting = Self.bytes { writer in
      writer.preface()
      writer.settings()
    }
    let told = Self.bytes { writer in
      writer.preface()
      writer.settings([(5, UInt32(FrameSplitter.told))])
    }
    for length in [1, 9, 24, 33] {
      let result = self.passed(greeting, by: length)
      #expect(result.bytes == told + Self.acknowledgement)
      #expect(!result.isComplete)
    }
  }

  @Test(
    "The largest frame is the peer's last word, and HTTP/2 hears of larger ones",
    arguments: [
      [16_384, 262_144], [20_000, 30_000, 262_144], [16_777_215, 16_777_215], [262_145, 262_145],
      [16_383, 262_144], [16_777_216, 262_144], [20_000, 0, 262_144], [300_000, 0, 300_000],
    ] as [[UInt32]]
  )
  func largestFrame(values: [UInt32]) {
    let greeting = Self.bytes { writer in
      writer.preface()
      writer.settings(values.dropLast().map { (5, $0) })
    }
    let expected = Self.bytes { writer in
      writer.preface()
      writer.settings(values.map { (5, $0) })
    }
    for length in [1, 10, greeting.count] {
      var settings = PeerSettings()
      var (passed, left) = (ByteBuffer(), ByteBuffer(bytes: greeting))
      while let piece = left.readSlice(length: min(length, left.readableBytes)),
        piece.readableBytes > 0
      {
        passed.writeImmutableBuffer(settings.received(piece))
      }
      #expect(Array(passed.readableBytesView) == expected + Self.acknowledgement)
      let allowed = values.dropLast().last { (16_384..<16_777_216).contains($0) }
      #expect(settings.peerMaxFrameSize == Int(allowed ?? 16_384), "until HTTP/2 has refused it")
    }
  }

  @Test("SETTINGS at any time are changed likewise, and nothing else is")
  func laterSettings() {
    let bytes = Self.greeting + Self.acknowledgement
    let later = Self.bytes { writer in
      writer.ping(1)
      writer.settings([(5, 20_000)])
      writer.headers(FrameWriter.request("/a/b"), on: 1)
      writer.data(ByteBuffer(repeating: 4, count: 300), on: 1, isEnd: true)
      writer.settings([(4, 100)])
      writer.settingsAck()
      writer.ping(2)
    }
    let expected = Self.bytes { writer in
      writer.ping(1)
      writer.settings([(5, 20_000), (5, UInt32(FrameSplitter.told))])
      writer.headers(FrameWriter.request("/a/b"), on: 1)
      writer.data(ByteBuffer(repeating: 4, count: 300), on: 1, isEnd: true)
      writer.settings([(4, 100), (5, UInt32(FrameSplitter.told))])
      writer.settingsAck()
      writer.ping(2)
    }
    for length in 1...(bytes + later).count {
      let result = self.passed(bytes + later, by: length)
      #expect(result.bytes == Self.told + Self.acknowledgement + expected, "in pieces of \(length)")
    }
  }

  @Test("A peer that does not greet by settings is left to HTTP/2", arguments: [0, 1])
  func noGreeting(kind: Int) {
    let bytes = Self.bytes { writer in
      writer.preface()
      if kind == 0 { writer.ping(1) } else { writer.settingsAck() }
      writer.settingsAck()
    }
    for length in [1, 10, bytes.count] {
      let result = self.passed(bytes, by: length)
      #expect(result.bytes == bytes)
      #expect(result.isComplete)
    }
  }

  @Test("An acknowledgement that is malformed is left to HTTP/2")
  func malformedAcknowledgement() {
    let onStream: [UInt8] = [0, 0, 0, 4, 1, 0, 0, 0, 1]
    let withValue: [UInt8] = [0, 0, 1, 4, 1, 0, 0, 0, 0, 9]
    for malformed in [onStream, withValue] {
      let result = self.passed(Self.greeting + malformed, by: 5)
      #expect(result.bytes == Self.told + Self.acknowledgement + malformed)
      #expect(!result.isComplete)
    }
  }

  @Test("Frames but DATA are given whole, and those that are too large at once")
  func wholeFrames() {
    var settings = PeerSettings()
    _ = settings.received(ByteBuffer(bytes: Self.greeting + Self.acknowledgement))
    let unknown: [UInt8] = [0, 0, 100, 0x77, 0, 0, 0, 0, 0] + [UInt8](repeating: 1, count: 100)
    let data: [UInt8] = [0, 0, 100, 0, 0, 0, 0, 0, 1] + [UInt8](repeating: 2, count: 100)
    #expect(settings.received(ByteBuffer(bytes: unknown.prefix(60))).readableBytes == 0)
    #expect(
      settings.received(ByteBuffer(bytes: unknown.dropFirst(60) + data.prefix(5))).readableBytes
        == 109
    )
    #expect(settings.received(ByteBuffer(bytes: data.dropFirst(5).prefix(4))).readableBytes == 9)
    #expect(settings.received(ByteBuffer(bytes: data.dropFirst(9).prefix(40))).readableBytes == 40)
    #expect(
      settings.received(ByteBuffer(bytes: data.dropFirst(49) + unknown.prefix(20))).readableBytes
        == 60
    )
    #expect(settings.received(ByteBuffer(bytes: unknown.dropFirst(20))).readableBytes == 109)
    let large: [UInt8] = [0, 0x40, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    #expect(settings.received(ByteBuffer(bytes: large)).readableBytes == large.count)
  }

  private static func frame(_ type: UInt8, _ flags: UInt8, _ length: Int) -> [UInt8] {
    [0, UInt8(length >> 8), UInt8(length & 255), type, flags, 0, 0, 0, 1]
      + [UInt8](repeating: 1, count: length)
  }

  /// What comes out for each of some pieces.
  private static func lengths(_ pieces: [[UInt8]], maximumBlock: Int = 1000) -> [Int] {
    var settings = PeerSettings(maximumBlock: maximumBlock)
    _ = settings.received(ByteBuffer(bytes: Self.greeting + Self.acknowledgement))
    return pieces.map { settings.received(ByteBuffer(bytes: $0)).readableBytes }
  }

  @Test("A header block is given whole, and so is DATA that is padded")
  func wholeBlocks() {
    let ping = Self.frame(6, 0, 8)
    let block = Self.frame(1, 0, 10) + Self.frame(9, 0, 0) + Self.frame(9, 4, 20)
    #expect(Self.lengths([ping + block.prefix(30), block.dropFirst(30) + ping]) == [17, 74])
    for cut in 1..<block.count {
      let pieces = [Array(block.prefix(cut)), Array(block.dropFirst(cut))]
      #expect(Self.lengths(pieces) == [0, block.count])
    }
    let padded = Self.frame(0, 8, 50)
    for cut in 1..<padded.count {
      let pieces = [Array(padded.prefix(cut)), Array(padded.dropFirst(cut))]
      #expect(Self.lengths(pieces) == [0, padded.count])
    }
  }

  @Test("A header block that is none, or too large, is HTTP/2's to refuse")
  func blocksToRefuse() {
    let (begin, more, last) = (Self.frame(1, 0, 10), Self.frame(9, 0, 400), Self.frame(9, 4, 1))
    // Another frame amid it.
    #expect(Self.lengths([begin, Self.frame(6, 0, 8)]) == [0, 36])
    // More bytes than may be, and more frames.
    #expect(Self.lengths([begin, more, more, more, last]) == [0, 0, 0, 1246, 10])
    let small = Self.frame(9, 0, 0)
    let passed = Self.lengths([begin] + [[UInt8]](repeating: small, count: 70))
    #expect(passed.prefix(64).allSatisfy { $0 == 0 })
    #expect(passed.reduce(0, +) == begin.count + 70 * small.count)
    // A CONTINUATION that is larger than a frame may be.
    let large: [UInt8] = [0, 0x40, 1, 9, 0, 0, 0, 0, 1, 7]
    #expect(Self.lengths([begin, large]) == [0, begin.count + large.count])
  }

  @Test("What comes for streams that nobody serves is left out, and counted", arguments: 1...60)
  func framesForNobody(length: Int) {
    let bytes = Self.bytes { writer in
      writer.headers(FrameWriter.request("/a/b"), on: 1)
      writer.reset(1)
      writer.data(ByteBuffer(repeating: 1, count: 50), on: 1)
      writer.ping(1)
      writer.data(ByteBuffer(repeating: 2, count: 30), on: 1, isEnd: true, padding: 3)
      writer.data(ByteBuffer(repeating: 3, count: 20), on: 3)
      writer.windowUpdate(5, increment: 7)
      writer.reset(5)
      writer.data(ByteBuffer(repeating: 4, count: 10), on: 5)
      writer.windowUpdate(0, increment: 9)
    }
    let expected = Self.bytes { writer in
      writer.headers(FrameWriter.request("/a/b"), on: 1)
      writer.reset(1)
      writer.ping(1)
      writer.data(ByteBuffer(repeating: 3, count: 20), on: 3)
      writer.windowUpdate(0, increment: 9)
    }
    var settings = PeerSettings()
    _ = settings.received(ByteBuffer(bytes: Self.greeting + Self.acknowledgement))
    settings.lastStream = 3
    var (passed, left, ignored) = (ByteBuffer(), ByteBuffer(bytes: bytes), 0)
    while let piece = left.readSlice(length: min(length, left.readableBytes)),
      piece.readableBytes > 0
    {
      passed.writeImmutableBuffer(settings.received(piece))
      ignored += settings.takeIgnoredBytes()
    }
    #expect(Array(passed.readableBytesView) == expected)
    #expect(ignored == 50 + 34 + 10)
  }

  @Test("The reserved bit of a stream's number means nothing")
  func reservedBit() {
    let data: [UInt8] = [0, 0, 2, 0, 1, 0x80, 0, 0, 1, 7, 7]
    #expect(Self.lengths([data]) == [data.count])
  }

  @Test("Of the windows that a frame names the last one counts, and one that can't be is passed")
  func windows() {
    var settings = PeerSettings()
    _ = settings.received(ByteBuffer(bytes: Self.greeting + Self.acknowledgement))
    let many = Self.bytes { $0.settings([(4, 1), (1, 9), (4, 2), (4, 1 << 31), (7, 3), (4, 5)]) }
    let expected = Self.bytes {
      $0.settings([(1, 9), (4, 1 << 31), (7, 3), (4, 5), (5, UInt32(FrameSplitter.told))])
    }
    #expect(Array(settings.received(ByteBuffer(bytes: many)).readableBytesView) == expected)
    // No whole number of values: HTTP/2's to refuse.
    let odd: [UInt8] = [0, 0, 4, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4]
    let passed = Array(settings.received(ByteBuffer(bytes: odd)).readableBytesView)
    #expect(passed.prefix(13) == [0, 0, 10, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4])
  }
}
