import GRPCEngineTesting
import GRPCEngineTransport
import NIOCore
import Testing

struct EarlySettingsTests {
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
  private static let calls = bytes { writer in
    writer.headers(FrameWriter.request("/a/b"), on: 1)
    // What looks like an acknowledgement inside of a frame is none.
    writer.data(ByteBuffer(bytes: acknowledgement), on: 1, isEnd: true)
    writer.settings()
  }
  private static let rest = bytes { writer in
    writer.settingsAck()
    writer.ping(7)
  }

  /// What comes out when `bytes` come in pieces.
  private func passed(_ bytes: [UInt8], by length: Int) -> (bytes: [UInt8], isComplete: Bool) {
    var settings = EarlySettings()
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
    let bytes = Self.greeting + Self.calls + Self.acknowledgement + Self.rest
    let expected = Self.told + Self.acknowledgement + Self.calls + Self.rest
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
      [16_383, 16_383], [16_777_216, 16_777_216],
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
      var settings = EarlySettings()
      var (passed, left) = (ByteBuffer(), ByteBuffer(bytes: greeting))
      while let piece = left.readSlice(length: min(length, left.readableBytes)),
        piece.readableBytes > 0
      {
        passed.writeImmutableBuffer(settings.received(piece))
      }
      #expect(Array(passed.readableBytesView) == expected + Self.acknowledgement)
      #expect(settings.peerMaxFrameSize == values.dropLast().last.map { Int($0) })
    }
  }

  @Test("A peer that does not greet by settings is left to HTTP/2", arguments: [0, 1])
  func noGreeting(kind: Int) {
    let bytes = Self.bytes { writer in
      writer.preface()
      if kind == 0 { writer.ping(1) } else { writer.settingsAck() }
      writer.settings()
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
}
