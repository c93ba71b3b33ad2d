package import NIOCore
package import NIOHPACK

/// Writes a client's side of a connection, frame by frame.
///
/// Nothing is checked: what a hostile peer may send can be written here. Header blocks are encoded
/// in the order of the calls, so what is written has to be sent in that order.
package struct FrameWriter {
  package static let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

  /// What was written and not yet taken.
  package private(set) var bytes = ByteBuffer()
  private var encoder = HPACKEncoder(allocator: ByteBufferAllocator())

  package init() {}

  /// Gives what was written and begins anew.
  package mutating func take() -> ByteBuffer {
    defer { self.bytes = ByteBuffer() }
    return self.bytes
  }

  package mutating func preface() { self.bytes.writeString(Self.preface) }

  package mutating func raw(_ bytes: some Sequence<UInt8>) { self.bytes.writeBytes(bytes) }

  package mutating func frame(_ frame: RawFrame, length: Int? = nil) {
    frame.write(to: &self.bytes, length: length)
  }

  package mutating func settings(_ values: [(UInt16, UInt32)] = []) {
    var payload = ByteBuffer()
    for (id, value) in values { payload.writeMultipleIntegers(id, value) }
    self.frame(RawFrame(type: FrameType.settings, stream: 0, payload: payload))
  }

  package mutating func settingsAck() {
    self.frame(RawFrame(type: FrameType.settings, flags: FrameFlag.ack, stream: 0))
  }

  /// - Parameter fragment: the most bytes a frame carries; the rest follows in CONTINUATIONs.
  package mutating func headers(
    _ headers: HPACKHeaders,
    on stream: Int,
    isEnd: Bool = false,
    fragment: Int = 16_384
  ) {
    var block = self.block(headers)
    var type = FrameType.headers
    repeat {
      let part = block.readSlice(length: min(fragment, block.readableBytes)) ?? ByteBuffer()
      var flags: UInt8 = block.readableBytes == 0 ? FrameFlag.endHeaders : 0
      if isEnd, type == FrameType.headers { flags |= FrameFlag.endStream }
      self.frame(RawFrame(type: type, flags: flags, stream: stream, payload: part))
      type = FrameType.continuation
    } while block.readableBytes > 0
  }

  /// A header list, compressed.
  package mutating func block(_ headers: HPACKHeaders) -> ByteBuffer {
    var block = ByteBuffer()
    // Fails only for a table size that was set and is not allowed; none is set.
    try? self.encoder.beginEncoding(allocator: ByteBufferAllocator())
    try? self.encoder.append(headers: headers)
    if let encoded = try? self.encoder.endEncoding() { block.writeImmutableBuffer(encoded) }
    return block
  }

  /// - Parameter padding: bytes of padding; `nil` writes an unpadded frame.
  package mutating func data(
    _ payload: ByteBuffer,
    on stream: Int,
    isEnd: Bool = false,
    padding: UInt8? = nil
  ) {
    var flags: UInt8 = isEnd ? FrameFlag.endStream : 0
    var content = payload
    if let padding {
      flags |= FrameFlag.padded
      content = ByteBuffer(integer: padding)
      content.writeImmutableBuffer(payload)
      content.writeRepeatingByte(0, count: Int(padding))
    }
    self.frame(RawFrame(type: FrameType.data, flags: flags, stream: stream, payload: content))
  }

  package mutating func reset(_ stream: Int, code: UInt32 = ErrorCode.cancel) {
    self.frame(
      RawFrame(type: FrameType.reset, stream: stream, payload: ByteBuffer(integer: code))
    )
  }

  package mutating func ping(_ data: UInt64 = 0, isAck: Bool = false) {
    self.frame(
      RawFrame(
        type: FrameType.ping,
        flags: isAck ? FrameFlag.ack : 0,
        stream: 0,
        payload: ByteBuffer(integer: data)
      )
    )
  }

  package mutating func goAway(last: Int = 0, code: UInt32 = ErrorCode.noError) {
    var payload = ByteBuffer()
    payload.writeMultipleIntegers(UInt32(last), code)
    self.frame(RawFrame(type: FrameType.goAway, stream: 0, payload: payload))
  }

  package mutating func windowUpdate(_ stream: Int, increment: Int) {
    self.frame(
      RawFrame(
        type: FrameType.windowUpdate,
        stream: stream,
        payload: ByteBuffer(integer: UInt32(increment))
      )
    )
  }

  /// The headers that open a call, with `extra` after them.
  package static func request(_ path: String, _ extra: HPACKHeaders = [:]) -> HPACKHeaders {
    var headers: HPACKHeaders = [
      ":method": "POST",
      ":scheme": "http",
      ":path": path,
      ":authority": "localhost",
      "content-type": "application/grpc",
      "te": "trailers",
    ]
    headers.add(contentsOf: extra)
    return headers
  }

  /// A length-prefixed message.
  package static func message(_ bytes: some Collection<UInt8>, isCompressed: Bool = false)
    -> ByteBuffer
  {
    var buffer = ByteBuffer()
    buffer.writeMultipleIntegers(UInt8(isCompressed ? 1 : 0), UInt32(bytes.count))
    buffer.writeBytes(bytes)
    return buffer
  }
}
