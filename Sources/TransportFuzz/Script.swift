internal import GRPCEngineTesting
internal import NIOCore
internal import NIOHPACK

/// Turns a fuzzer's bytes into what a clumsy or hostile peer does, step by step.
///
/// Most steps are valid frames, so that few bytes reach deep; some are not, and one sends bytes as
/// they are.
struct Script {
  enum Step {
    case send(ByteBuffer)
    case wait(TimeAmount)
    case leave
  }

  private var input: ByteBuffer
  private var writer = FrameWriter()
  private var lastStream = -1

  /// - Parameter input: the first byte says how the peer greets.
  init(_ input: ByteBuffer) { self.input = input }

  mutating func greeting() -> ByteBuffer {
    let choice = self.byte()
    if choice != 0xFF { self.writer.preface() }
    switch choice % 8 {
    case 0: self.writer.settings([(4, 0)])
    case 1: self.writer.settings([(4, UInt32(Int32.max)), (5, 16_777_215)])
    case 2: self.writer.settings([(1, 0), (3, 0), (6, 64)])
    case 3: break
    default: self.writer.settings()
    }
    return self.writer.take()
  }

  mutating func next() -> Step? {
    guard self.input.readableBytes > 0 else { return nil }
    let step = self.byte()
    switch step % 20 {
    case 0...2:
      self.lastStream += 2
      self.writer.headers(self.request(), on: self.lastStream, isEnd: step & 0x80 != 0)
    case 3, 4:
      let message = FrameWriter.message(self.bytes(), isCompressed: step & 0x40 != 0)
      self.writer.data(message, on: self.stream(), isEnd: step & 0x80 != 0)
    case 5:
      self.writer.data(
        ByteBuffer(bytes: self.bytes()),
        on: self.stream(),
        isEnd: step & 0x80 != 0,
        padding: self.byte()
      )
    case 6: self.writer.reset(self.stream(), code: UInt32(self.byte()))
    case 7: self.writer.windowUpdate(self.stream(), increment: Int(self.byte()) << (step >> 5))
    case 8: self.writer.windowUpdate(0, increment: Int(self.byte()) << (step >> 5 + 16))
    case 9: self.writer.ping(UInt64(self.byte()), isAck: step & 0x80 != 0)
    case 10: self.writer.settings([(UInt16(self.byte() % 8), UInt32(self.byte()) << (step >> 3))])
    case 11: self.writer.settingsAck()
    case 12: self.writer.goAway(last: self.stream(), code: UInt32(self.byte()))
    case 13:
      // Trailers, or a header block for a stream that has one, cut into pieces.
      self.writer.headers(
        ["x-trailer": "1"],
        on: self.stream(),
        isEnd: step & 0x80 != 0,
        fragment: 3
      )
    case 14:
      let (type, flags) = (self.byte(), self.byte())
      self.writer.frame(
        RawFrame(
          type: type % 12,
          flags: flags,
          stream: self.stream(),
          payload: ByteBuffer(bytes: self.bytes())
        )
      )
    case 15: self.writer.raw(self.bytes())
    case 16: return .wait(.milliseconds(Int64(self.byte()) << (step >> 4)))
    case 17:
      // A large message, in as many frames as it takes, whether or not there is room for it.
      let stream = self.stream()
      var message = FrameWriter.message(
        [UInt8](repeating: step, count: (Int(self.byte()) + 1) << 8)
      )
      while let part = message.readSlice(length: min(message.readableBytes, 16_384)),
        part.readableBytes > 0
      {
        self.writer.data(part, on: stream)
      }
    case 18:
      // A prefix alone: a message of which nothing comes.
      var prefix = ByteBuffer(integer: UInt8(step >> 7))
      prefix.writeInteger(UInt32(self.byte()) << 14)
      self.writer.data(prefix, on: self.stream())
    default: return .leave
    }
    // Several steps may arrive as one read, or one step as several.
    return .send(step & 0x20 == 0 ? self.writer.take() : ByteBuffer())
  }

  /// What the steps left unsent.
  mutating func rest() -> ByteBuffer { self.writer.take() }

  private mutating func request() -> HPACKHeaders {
    let choice = self.byte()
    let paths = TransportProperty.paths
    var headers = FrameWriter.request(paths[Int(choice) % paths.count])
    switch choice >> 4 {
    case 1: headers.add(name: "grpc-timeout", value: "\(self.byte())m")
    case 2: headers.add(name: "grpc-timeout", value: String(decoding: self.bytes(), as: UTF8.self))
    case 3:
      headers.add(name: "grpc-encoding", value: "gzip")
      headers.add(name: "grpc-accept-encoding", value: "gzip,deflate")
    case 4: headers.add(name: "x-bin", value: String(decoding: self.bytes(), as: UTF8.self))
    case 5: headers.add(name: "x-text", value: String(decoding: self.bytes(), as: UTF8.self))
    case 6: headers.add(name: "content-length", value: "\(self.byte())")
    case 7: headers.add(name: "x-long", value: String(repeating: "a", count: Int(self.byte()) << 8))
    case 8: headers.remove(name: "te")
    case 9: headers.replaceOrAdd(name: "content-type", value: "text/plain")
    case 10: headers.replaceOrAdd(name: ":method", value: "GET")
    case 11: headers.remove(name: ":path")
    case 12: headers.add(name: "connection", value: "close")
    case 13:
      headers.add(name: ":path", value: String(decoding: self.bytes(), as: UTF8.self))
    default: break
    }
    return headers
  }

  /// A stream that was opened, mostly.
  private mutating func stream() -> Int {
    let choice = Int(self.byte())
    if choice >= 0xF0 { return choice & 0xF }
    return max(1, self.lastStream - 2 * (choice & 0x3))
  }

  private mutating func byte() -> UInt8 { self.input.readInteger() ?? 0 }

  /// As many bytes as the next one says.
  private mutating func bytes() -> [UInt8] {
    let length = min(Int(self.byte()), self.input.readableBytes)
    return self.input.readBytes(length: length) ?? []
  }
}
