package import NIOCore

/// Cuts what a client sends into frames (RFC 9113 section 4).
///
/// DATA is given on as it comes, without a copy. Of every other frame nothing is given on before it is whole;
/// what has come of one when a read ends is kept in memory of its own, so that no read buffer stays for it.
/// The content of frames of unknown types is passed over.
package struct FrameReader {
  package enum Piece {
    /// A whole frame with its content, of any type but DATA.
    case frame(FrameHeader, ByteBuffer)
    /// A part of the content of DATA. `windowLength` is what it takes of the windows, which padding does too.
    case data(FrameHeader, ByteBuffer, windowLength: Int, isFirst: Bool, isLast: Bool)
  }

  /// The connection preface of a client (section 3.4).
  private static let preface = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8)
  /// An own buffer with this much room is not worth a smaller one.
  private static let smallChange = 4096
  /// What is kept at most of a frame that has to be whole and is no header block.
  private static let largestControlFrame = 16_384

  private enum State {
    /// So many bytes of the preface have come.
    case preface(Int)
    case header
    /// The content of DATA, of which so many bytes are still to come, and padding behind it.
    case data(FrameHeader, rest: Int, padding: Int, isFirst: Bool)
    /// Bytes that mean nothing.
    case skip(Int)
  }

  /// SETTINGS_MAX_FRAME_SIZE of this server.
  private let maximumFrameSize: Int
  /// The largest part of a header block.
  private let maximumBlock: Int
  private var state = State.preface(0)
  private var buffer = ByteBuffer()
  /// Whether `buffer` is this reader's own, and not a read buffer of the connection's.
  private var isOwn = false

  package init(maximumFrameSize: Int, maximumBlock: Int) {
    self.maximumFrameSize = maximumFrameSize
    self.maximumBlock = maximumBlock
  }

  /// Bytes that have been read and are not part of a whole frame.
  var count: Int { self.buffer.readableBytes }

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
        if try self.readPreface(count) { continue }
      case .header:
        guard let header = FrameHeader(self.buffer) else { break }
        if let piece = try self.readFrame(header) { return piece }
        if case .header = self.state { break }
        continue
      case .data(let header, let rest, let padding, let isFirst):
        let length = min(rest, self.buffer.readableBytes)
        guard length > 0 || rest == 0, let content = self.buffer.readSlice(length: length) else {
          break
        }
        let isLast = length == rest
        if !isLast {
          self.state = .data(header, rest: rest - length, padding: padding, isFirst: false)
        } else {
          self.state = padding > 0 ? .skip(padding) : .header
        }
        // All of the padding with the first part: it is 256 bytes at most.
        let windowLength = isFirst ? length + header.length - rest : length
        return .data(
          header,
          content,
          windowLength: windowLength,
          isFirst: isFirst,
          isLast: isLast
        )
      case .skip(let rest):
        let length = min(rest, self.buffer.readableBytes)
        self.buffer.moveReaderIndex(forwardBy: length)
        self.state = length == rest ? .header : .skip(rest - length)
        if length == rest { continue }
      }
      self.keepRest()
      return nil
    }
  }

  /// - Returns: whether all of it has come.
  private mutating func readPreface(_ count: Int) throws(HTTP2ConnectionError) -> Bool {
    var count = count
    while count < Self.preface.count {
      guard let byte = self.buffer.readInteger(as: UInt8.self) else {
        self.state = .preface(count)
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

  /// - Returns: a whole frame. `nil` when there is none yet, or when the state has changed.
  private mutating func readFrame(_ header: FrameHeader) throws(HTTP2ConnectionError) -> Piece? {
    guard header.length <= self.maximumFrameSize else {
      throw HTTP2ConnectionError(
        .frameSizeError,
        "A frame of \(header.length) bytes is larger than \(self.maximumFrameSize)"
      )
    }
    switch header.type {
    case FrameType.data:
      try self.beginData(header)
      return nil
    case FrameType.headers, FrameType.continuation:
      guard header.length <= self.maximumBlock else {
        throw HTTP2ConnectionError(.enhanceYourCalm, "A header block that is too large")
      }
    case let type where type > FrameType.continuation:
      self.buffer.moveReaderIndex(forwardBy: FrameHeader.size)
      self.state = .skip(header.length)
      return .frame(header, ByteBuffer())
    default:
      guard header.length <= Self.largestControlFrame else {
        throw HTTP2ConnectionError(
          .enhanceYourCalm,
          "A frame of type \(header.type) with \(header.length) bytes"
        )
      }
    }
    guard self.buffer.readableBytes >= FrameHeader.size + header.length else { return nil }
    self.buffer.moveReaderIndex(forwardBy: FrameHeader.size)
    guard let content = self.buffer.readSlice(length: header.length) else { return nil }
    return .frame(header, content)
  }

  private mutating func beginData(_ header: FrameHeader) throws(HTTP2ConnectionError) {
    guard header.has(FrameFlag.padded) else {
      self.buffer.moveReaderIndex(forwardBy: FrameHeader.size)
      self.state = .data(header, rest: header.length, padding: 0, isFirst: true)
      return
    }
    guard header.length > 0 else { throw HTTP2ConnectionError.badLength("DATA with padding") }
    let index = self.buffer.readerIndex + FrameHeader.size
    guard let padding = self.buffer.getInteger(at: index, as: UInt8.self) else { return }
    let rest = header.length - 1 - Int(padding)
    guard rest >= 0 else { throw HTTP2ConnectionError.tooMuchPadding }
    self.buffer.moveReaderIndex(forwardBy: FrameHeader.size + 1)
    self.state = .data(header, rest: rest, padding: Int(padding), isFirst: true)
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
