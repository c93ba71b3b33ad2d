import GRPCEngineTesting
import GRPCEngineTransport
import NIOCore
import Testing

struct FrameSplitterTests {
  private struct Frame: Equatable {
    var type: UInt8
    var flags: UInt8
    var stream: UInt32
    var content: [UInt8]
  }

  private static func encode(_ frame: Frame) -> (head: ByteBuffer, content: ByteBuffer) {
    var head = ByteBuffer()
    head.writeInteger(UInt32(frame.content.count) << 8 | UInt32(frame.type))
    head.writeMultipleIntegers(frame.flags, frame.stream)
    return (head, ByteBuffer(bytes: frame.content))
  }

  private static func decode(_ bytes: ByteBuffer) -> [Frame] {
    var (bytes, frames) = (bytes, [Frame]())
    while let word = bytes.readInteger(as: UInt32.self),
      let (flags, stream) = bytes.readMultipleIntegers(as: (UInt8, UInt32).self),
      let content = bytes.readBytes(length: Int(word >> 8))
    {
      let type = UInt8(truncatingIfNeeded: word)
      frames.append(Frame(type: type, flags: flags, stream: stream, content: content))
    }
    #expect(bytes.readableBytes == 0)
    return frames
  }

  /// What is written for frames, the content of DATA by itself as NIOHTTP2 writes it.
  private static func written(_ frames: [Frame], maximum: Int) -> [Frame] {
    var splitter = FrameSplitter()
    splitter.maximum = maximum
    var bytes = ByteBuffer()
    func write(_ part: ByteBuffer) {
      for it in splitter.write(part, lastStream: 5) ?? [part] { bytes.writeImmutableBuffer(it) }
    }
    for frame in frames {
      var (head, content) = Self.encode(frame)
      if frame.type == 0 || frame.type == 7 {
        // Of a GOAWAY the debug data are what comes by itself.
        if frame.type == 7, var numbers = content.readSlice(length: 8) {
          head.writeBuffer(&numbers)
        }
        write(head)
        write(content)
      } else {
        head.writeBuffer(&content)
        write(head)
      }
    }
    return Self.decode(bytes)
  }

  /// The frames as a peer understands them, where each is of a stream of its own.
  private static func joined(_ frames: [Frame]) -> [Frame] {
    var joined: [Frame] = []
    for frame in frames {
      if let last = joined.last, frame.stream == last.stream, [0, 9].contains(frame.type) {
        joined[joined.count - 1].content += frame.content
        joined[joined.count - 1].flags |= frame.flags
      } else {
        joined.append(frame)
      }
    }
    return joined
  }

  @Test("A header block that is too large goes on in CONTINUATION, to its end")
  func headers() {
    let block = (0..<40_000).map { UInt8(truncatingIfNeeded: $0) }
    let frame = Frame(type: 1, flags: 5, stream: 7, content: block)
    let frames = Self.written([frame], maximum: 16_384)
    #expect(frames.map(\.type) == [1, 9, 9])
    #expect(frames.map(\.flags) == [1, 0, 4])
    #expect(frames.map(\.content.count) == [16_384, 16_384, 7232])
    #expect(Self.joined(frames) == [frame])
  }

  private static func goAway(_ last: UInt32, _ code: UInt32) -> Frame {
    var content = ByteBuffer(integer: last)
    content.writeInteger(code)
    content.writeString("debug data")
    return Frame(type: 7, flags: 0, stream: 0, content: Array(content.readableBytesView))
  }

  @Test("A GOAWAY about an error names the last stream, and never one past those before")
  func goAway() {
    let (none, all) = (UInt32(Int32.max), UInt32(0))
    #expect(Self.written([Self.goAway(all, 11)], maximum: 16_384) == [Self.goAway(5, 11)])
    #expect(Self.written([Self.goAway(none, 1)], maximum: 16_384) == [Self.goAway(5, 1)])
    let drain = [Self.goAway(none, 0), Self.goAway(3, 0)]
    #expect(Self.written(drain, maximum: 16_384) == drain)
    let failure = Self.written(drain + [Self.goAway(all, 1)], maximum: 16_384)
    #expect(failure == drain + [Self.goAway(3, 1)])
  }

  @Test("Content is left as it is, whatever frame it looks like")
  func content() {
    // A message of 1,792 bytes begins with 0, 0, 0, 7, 0.
    for type in UInt8(0)...12 {
      let content: [UInt8] = [0, 0, 0, type, 0, 0, 0, 0, 0] + Array(repeating: 9, count: 2000)
      let frames = [Frame(type: 0, flags: 0, stream: 1, content: content), Self.goAway(0, 1)]
      #expect(Self.written(frames, maximum: 16_384) == [frames[0], Self.goAway(5, 1)])
    }
  }

  @Test("No maximum is less than what every peer takes", arguments: [-1, 0, 1, 16_383])
  func leastMaximum(maximum: Int) {
    let frame = Frame(type: 1, flags: 5, stream: 7, content: Array(repeating: 1, count: 16_385))
    let frames = Self.written([frame], maximum: maximum)
    #expect(frames.map(\.content.count) == [16_384, 1])
  }

  @Test("Frames come out as they went in, none larger than the peer takes")
  func anyFrames() {
    var random = SplitMix(seed: 1)
    for _ in 0..<300 {
      let maximum = Int.random(in: 16_384...20_000, using: &random)
      let frames = (0..<Int.random(in: 1...8, using: &random)).map { index in
        let type: UInt8 = [0, 0, 1, 1, 3, 6, 8].randomElement(using: &random) ?? 0
        let largest = type < 2 ? 60_000 : 50
        let exact = [maximum, maximum + 1, maximum * 2, 0].randomElement(using: &random) ?? 0
        let count =
          type < 2 && Bool.random(using: &random)
          ? exact : Int.random(in: 0...largest, using: &random)
        return Frame(
          type: type,
          flags: type == 1 ? 4 | UInt8.random(in: 0...1, using: &random) : 0,
          stream: UInt32(index + 1),
          content: (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        )
      }
      let written = Self.written(frames, maximum: maximum)
      #expect(written.allSatisfy { $0.content.count <= maximum })
      #expect(Self.joined(written) == frames)
    }
  }
}
