package import NIOCore

/// Cuts what a client sends into frames (RFC 9113 section 4).
///
/// DATA is given on as it comes, without a copy. Of every other frame, and of DATA with padding, nothing is
/// given on before it is whole; what has come of one when a read ends is kept in memory of its own, so that
/// no read buffer stays for it.
package struct FrameReader {
  package enum Piece {
    /// A whole frame with its content.
    case frame(FrameHeader, ByteBuffer)
    /// A part of the content of DATA without padding.
    case data(FrameHeader, ByteBuffer, isFirst: Bool, isLast: Bool)
  }

  /// The connection preface of a client (section 3.4).
  private static let preface = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8)
  /// An own buffer with this much room is not worth a smaller one.
  private static let smallChange = 4096

  private enum State {
    /// So many bytes of the preface have come.
    case preface(Int)
    case header
    /// The content of DATA, of which so many bytes are still to come.
    case data(FrameHeader, rest: Int)
  }

  /// SETTINGS_MAX_FRAME_SIZE of this server.
  private let maximumFrameSize: Int
  private var state = State.preface(0)
  private var buffer = ByteBuffer()
  /// Whether `buffer` is this reader's own, and not a read buffer of the connection's.
  private var isOwn = false

  package init(maximumFrameSize: Int) { self.maximumFrameSize = maximumFrameSize }

  /// Adds what has been read. `next` is to be called until it returns `nil`.
  package mutating func append(_ bytes: ByteBuffer) {
    if self.buffer.readableBytes == 0 {
      self.buffer = bytes
      self.isOwn = false
    } else {
      self.buffer.writeImmutableBuffer(bytes)
    }
  }

  package mutating func next() throws(HTTP2ConnectionError) -> Piece? {
    while true {
      switch self.state {
      case .preface(let count):
        guard try self.readPreface(count) else { return nil }
      case .header:
        guard let piece = try self.readFrame() else {
          if case .data = self.state { continue }
          self.keepRest()
          return nil
        }
        return piece
      case .data(let header, let rest):
        let length = min(rest, self.buffer.readableBytes)
        guard length > 0, let content = self.buffer.readSlice(length: length) else {
          self.keepRest()
          return nil
        }
        self.state = length == rest ? .header : .data(header, rest: rest - length)
        let isFirst = rest == header.length
        return .data(header, content, isFirst: isFirst, isLast: length == rest)
      }
    }
  }

  /// - Returns: whether all of it has come.
  private mutating func readPreface(_ count: Int) throws(HTTP2ConnectionError) -> Bool {
    var count = count
    while count < Self.preface.count {
      guard let byte = self.buffer.readInteger(as: UInt8.self) else {
        self.state = .preface(count)
        self.keepRest()
        return false
      }
      guard byte == Self.preface[count] else {
        throw HTTP2ConnectionError(.protocolError, "This is no HTTP/2: the preface is missing")
      }
      count += 1
    }
    self.state = .header
    return true
  }

  /// - Returns: a whole frame. `nil` while there is none, or when the state is that of DATA now.
  private mutating func readFrame() throws(HTTP2ConnectionError) -> Piece? {
    guard let header = FrameHeader(self.buffer) else { return nil }
    guard header.length <= self.maximumFrameSize else {
      throw HTTP2ConnectionError(
        .frameSizeError,
        "A frame of \(header.length) bytes is larger than \(self.maximumFrameSize)"
      )
    }
    let isStreamed = header.type == FrameType.data && !header.has(FrameFlag.padded)
    if isStreamed, header.length > 0 {
      self.buffer.moveReaderIndex(forwardBy: FrameHeader.size)
      self.state = .data(header, rest: header.length)
      return nil
    }
    guard self.buffer.readableBytes >= FrameHeader.size + header.length else { return nil }
    self.buffer.moveReaderIndex(forwardBy: FrameHeader.size)
    let content = self.buffer.readSlice(length: header.length) ?? ByteBuffer()
    if isStreamed { return .data(header, content, isFirst: true, isLast: true) }
    return .frame(header, content)
  }

  /// Lets the read buffer go.
  private mutating func keepRest() {
    let count = self.buffer.readableBytes
    guard count > 0 else {
      self.buffer = ByteBuffer()
      return
    }
    if self.isOwn, self.buffer.capacity <= max(2 * count, Self.smallChange) {
      self.buffer.discardReadBytes()
      return
    }
    var own = ByteBuffer()
    own.writeImmutableBuffer(self.buffer)
    self.buffer = own
    self.isOwn = true
  }
}
