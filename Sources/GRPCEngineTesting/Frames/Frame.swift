package import NIOCore
package import NIOHPACK

/// A frame as it is on the wire, whether or not RFC 9113 allows it.
package struct RawFrame: Sendable {
  package var type: UInt8
  package var flags: UInt8
  package var stream: Int
  package var payload: ByteBuffer

  package init(type: UInt8, flags: UInt8 = 0, stream: Int, payload: ByteBuffer = ByteBuffer()) {
    self.type = type
    self.flags = flags
    self.stream = stream
    self.payload = payload
  }

  /// Appends the frame; `length` belies the payload's where a test wants that.
  package func write(to buffer: inout ByteBuffer, length: Int? = nil) {
    let length = UInt32(length ?? self.payload.readableBytes)
    buffer.writeInteger(UInt8(truncatingIfNeeded: length >> 16))
    buffer.writeInteger(UInt16(truncatingIfNeeded: length))
    buffer.writeMultipleIntegers(self.type, self.flags, UInt32(self.stream))
    buffer.writeImmutableBuffer(self.payload)
  }
}

/// RFC 9113 section 6's numbers.
package enum FrameType {
  package static let data: UInt8 = 0
  package static let headers: UInt8 = 1
  package static let priority: UInt8 = 2
  package static let reset: UInt8 = 3
  package static let settings: UInt8 = 4
  package static let pushPromise: UInt8 = 5
  package static let ping: UInt8 = 6
  package static let goAway: UInt8 = 7
  package static let windowUpdate: UInt8 = 8
  package static let continuation: UInt8 = 9
}

package enum FrameFlag {
  package static let endStream: UInt8 = 0x1
  package static let ack: UInt8 = 0x1
  package static let endHeaders: UInt8 = 0x4
  package static let padded: UInt8 = 0x8
}

/// RFC 9113 section 7's numbers.
package enum ErrorCode {
  package static let noError: UInt32 = 0x0
  package static let protocolError: UInt32 = 0x1
  package static let flowControlError: UInt32 = 0x3
  package static let streamClosed: UInt32 = 0x5
  package static let frameSizeError: UInt32 = 0x6
  package static let refusedStream: UInt32 = 0x7
  package static let cancel: UInt32 = 0x8
  package static let compressionError: UInt32 = 0x9
  package static let enhanceYourCalm: UInt32 = 0xb
}

/// A frame that a server sent.
package enum Frame: Sendable {
  case data(stream: Int, payload: ByteBuffer, isEnd: Bool)
  /// A whole header block, continuations included.
  case headers(stream: Int, HPACKHeaders, isEnd: Bool)
  case reset(stream: Int, code: UInt32)
  case settings([UInt16: UInt32], isAck: Bool)
  case ping(UInt64, isAck: Bool)
  case goAway(last: Int, code: UInt32, debug: String)
  case windowUpdate(stream: Int, increment: Int)
  case other(RawFrame)
}

/// What a server sent is no HTTP/2: the test has found a fault.
package struct MalformedFrame: Error {
  package let what: String
}

/// Cuts a server's bytes into frames.
package struct FrameReader {
  private var bytes = ByteBuffer()
  private var decoder = HPACKDecoder(allocator: ByteBufferAllocator())
  private var block: (stream: Int, isEnd: Bool, bytes: ByteBuffer)?

  package init() {
    // Whatever a client's SETTINGS may have allowed. Set here, since `init` reserves that much.
    self.decoder.maxDynamicTableLength = Int(UInt32.max)
    // Answers whose headers need more than one frame.
    self.decoder.maxHeaderListSize = 1 << 20
  }

  package mutating func append(_ bytes: ByteBuffer) { self.bytes.writeImmutableBuffer(bytes) }

  /// - Returns: the next frame, or `nil` until more bytes are there.
  package mutating func next() throws -> Frame? {
    while let raw = self.nextRaw() {
      if let frame = try self.frame(raw) { return frame }
    }
    return nil
  }

  private mutating func nextRaw() -> RawFrame? {
    var rest = self.bytes
    guard let high = rest.readInteger(as: UInt8.self), let low = rest.readInteger(as: UInt16.self),
      let (type, flags, stream) = rest.readMultipleIntegers(as: (UInt8, UInt8, UInt32).self),
      let payload = rest.readSlice(length: Int(high) << 16 | Int(low))
    else { return nil }
    self.bytes = rest
    self.bytes.discardReadBytes()
    return RawFrame(
      type: type,
      flags: flags,
      stream: Int(stream & 0x7FFF_FFFF),
      payload: payload
    )
  }

  private mutating func frame(_ raw: RawFrame) throws -> Frame? {
    var payload = raw.payload
    let isEnd = raw.flags & FrameFlag.endStream != 0
    if self.block != nil, raw.type != FrameType.continuation {
      throw MalformedFrame(what: "a header block is interrupted by type \(raw.type)")
    }
    switch raw.type {
    case FrameType.data:
      return .data(stream: raw.stream, payload: payload, isEnd: isEnd)
    case FrameType.headers:
      self.block = (raw.stream, isEnd, payload)
      return try self.headers(raw)
    case FrameType.continuation:
      self.block?.bytes.writeBuffer(&payload)
      return try self.headers(raw)
    case FrameType.reset:
      return .reset(stream: raw.stream, code: payload.readInteger() ?? 0)
    case FrameType.settings:
      var values: [UInt16: UInt32] = [:]
      while let (id, value) = payload.readMultipleIntegers(as: (UInt16, UInt32).self) {
        values[id] = value
      }
      return .settings(values, isAck: raw.flags & FrameFlag.ack != 0)
    case FrameType.ping:
      return .ping(payload.readInteger() ?? 0, isAck: raw.flags & FrameFlag.ack != 0)
    case FrameType.goAway:
      guard let (last, code) = payload.readMultipleIntegers(as: (UInt32, UInt32).self) else {
        throw MalformedFrame(what: "a short GOAWAY")
      }
      return .goAway(last: Int(last), code: code, debug: String(buffer: payload))
    case FrameType.windowUpdate:
      let increment = payload.readInteger(as: UInt32.self) ?? 0
      if increment == 0 { throw MalformedFrame(what: "a WINDOW_UPDATE of 0") }
      return .windowUpdate(stream: raw.stream, increment: Int(increment))
    default:
      return .other(raw)
    }
  }

  private mutating func headers(_ raw: RawFrame) throws -> Frame? {
    guard raw.flags & FrameFlag.endHeaders != 0 else { return nil }
    guard case (let stream, let isEnd, var bytes)? = self.block else {
      throw MalformedFrame(what: "a CONTINUATION without HEADERS")
    }
    self.block = nil
    return .headers(
      stream: stream,
      try self.decoder.decodeHeaders(from: &bytes),
      isEnd: isEnd
    )
  }
}
