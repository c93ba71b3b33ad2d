import GRPCEngineHTTP2
import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

/// A socket may cut what a client sends anywhere: that must change nothing.
struct CuttingTests {
  /// What a connection makes of the same bytes, cut at places that `random` chooses.
  private struct Outcome: Equatable {
    var events: [Told] = []
    var error: HTTP2ConnectionError?
    var output: [UInt8] = []

    init(_ bytes: ByteBuffer, _ random: SplitMix?) {
      var settings = HTTP2Settings()
      settings.streamWindow = 1 << 20
      settings.maxConcurrentStreams = 10
      var connection = HTTP2Connection(settings)
      var (random, bytes) = (random, bytes)
      connection.openWindow(by: 1 << 24)
      while bytes.readableBytes > 0 {
        let length = Self.length(&random, bytes)
        guard let part = bytes.readSlice(length: length) else { break }
        // In memory of its own, as each read of a socket is.
        var piece = ByteBuffer()
        piece.writeImmutableBuffer(part)
        connection.received(piece)
        do throws(HTTP2ConnectionError) {
          while let event = try connection.next(at: .uptimeNanoseconds(1)) {
            self.events.append(Told(event))
          }
        } catch {
          self.error = error
          break
        }
      }
      self.events = Told.joined(self.events)
      let (pieces, last) = connection.takeOutput()
      for piece in pieces { self.output += Array(piece.readableBytesView) }
      if let last { self.output += Array(last.readableBytesView) }
    }

    private static func length(_ random: inout SplitMix?, _ bytes: ByteBuffer) -> Int {
      guard var generator = random else { return bytes.readableBytes }
      defer { random = generator }
      let most = [1, 3, 10, 100, 5000].randomElement(using: &generator) ?? 1
      return min(bytes.readableBytes, Int.random(in: 1...most, using: &generator))
    }
  }

  /// What a client may send.
  private static func script(_ random: inout SplitMix, _ frames: Int) -> ByteBuffer {
    var (writer, open, next) = (FrameWriter(), [Int](), 1)
    writer.preface()
    writer.settings()
    writer.settingsAck()
    for _ in 0..<frames {
      let stream = open.randomElement(using: &random) ?? 0
      let isEnd = Int.random(in: 0..<3, using: &random) == 0
      switch Int.random(in: 0..<12, using: &random) {
      case 0, 1:
        let fragment = [3, 20, 16_384].randomElement(using: &random) ?? 3
        writer.headers(
          FrameWriter.request("/\(next % 5)"),
          on: next,
          isEnd: isEnd,
          fragment: fragment
        )
        if !isEnd { open.append(next) }
        next += 2
      case 2...5 where stream != 0:
        let length = Int.random(in: 0..<[2, 50, 16_000][Int(random.next() % 3)], using: &random)
        let letter = UInt8.random(in: 0x61...0x7A, using: &random)
        let content = ByteBuffer(repeating: letter, count: length)
        let padding = Bool.random(using: &random) ? nil : UInt8(random.next() % 100)
        writer.data(content, on: stream, isEnd: isEnd, padding: padding)
        if isEnd { open.removeAll { $0 == stream } }
      case 6 where stream != 0:
        writer.headers(["a": "\(stream)"], on: stream, isEnd: true)
        open.removeAll { $0 == stream }
      case 7 where stream != 0:
        writer.reset(stream)
        open.removeAll { $0 == stream }
      case 8: writer.ping(random.next(), isAck: isEnd)
      case 9: writer.windowUpdate(stream, increment: Int.random(in: 1..<1000, using: &random))
      case 10:
        writer.settings([(4, UInt32(random.next() % 100_000)), (1, UInt32(random.next() % 5000))])
      default: writer.frame(0x42, on: stream, Array(repeating: 7, count: Int(random.next() % 300)))
      }
    }
    return writer.take()
  }

  @Test("A good client's bytes mean the same however they are cut", arguments: 0..<10)
  func cuts(chunk: UInt64) {
    for seed in 0..<UInt64(30) {
      var random = SplitMix(seed: chunk << 32 | seed)
      let bytes = Self.script(&random, 50)
      let whole = Outcome(bytes, nil)
      #expect(whole.error == nil)
      for _ in 0..<2 {
        let cut = Outcome(bytes, SplitMix(seed: random.next()))
        #expect(cut == whole, "chunk \(chunk), seed \(seed)")
      }
    }
  }

  @Test("A client that errs is answered the same however its bytes are cut", arguments: 0..<10)
  func errors(chunk: UInt64) {
    var failed = 0
    for seed in 0..<UInt64(100) {
      var random = SplitMix(seed: 1 << 60 | chunk << 32 | seed)
      var bytes = Self.script(&random, 20)
      for _ in 0..<Int.random(in: 1..<4, using: &random) {
        let index = Int.random(in: 24..<bytes.readableBytes, using: &random)
        bytes.setInteger(UInt8.random(in: 0...255, using: &random), at: index)
      }
      let whole = Outcome(bytes, nil)
      if whole.error != nil { failed += 1 }
      let cut = Outcome(bytes, SplitMix(seed: random.next()))
      #expect(cut.error == whole.error, "chunk \(chunk), seed \(seed)")
      #expect(cut.output == whole.output, "chunk \(chunk), seed \(seed)")
      // DATA is given on as it comes, also of a frame that turns out to be one too many.
      let isWithoutData = { (event: Told) in if case .data = event { false } else { true } }
      #expect(cut.events.filter(isWithoutData) == whole.events.filter(isWithoutData))
    }
    #expect(failed > 3)
  }

  @Test("Bytes of no meaning end the connection, and nothing else")
  func garbage() {
    var random = SplitMix(seed: 77)
    for _ in 0..<2000 {
      var writer = FrameWriter()
      writer.preface()
      writer.settings()
      for _ in 0..<10 {
        // Frames of the right shape with anything in them.
        let bytes = (0..<Int(random.next() % 40)).map { _ in
          UInt8(truncatingIfNeeded: random.next())
        }
        writer.frame(
          UInt8(random.next() % 11),
          UInt8(truncatingIfNeeded: random.next()),
          on: Int(random.next() % 6),
          bytes
        )
      }
      let bytes = writer.take()
      let whole = Outcome(bytes, nil)
      let cut = Outcome(bytes, SplitMix(seed: random.next()))
      #expect(cut.error == whole.error && cut.output == whole.output)
    }
  }
}
