package import NIOCore

/// Has NIOHTTP2 take this server's SETTINGS for acknowledged from the peer's first frame on.
///
/// NIOHTTP2 allows a peer 100 streams and headers of 16 KiB until the peer has acknowledged what this
/// server announced, and ends the connection past that. RFC 9113 section 6.5.2 says no such thing: a
/// peer that has not yet read the announcement may open as many streams as it likes, and gRPC's
/// clients send their first calls without waiting. So NIOHTTP2 is given an acknowledgement behind the
/// peer's first SETTINGS, and does not see the one that comes. That is right for limits that are no
/// lower than those that every connection begins with.
///
/// NIOHTTP2 is also told that the peer takes frames of `FrameSplitter.told`, if that takes less: the
/// last value of a setting counts (section 6.5.3), so that is added to whatever SETTINGS the peer sends.
/// For the same reason it hears of a window once for each frame, however often that names one.
///
/// And it is given whole frames, and whole header blocks: what has come of one when a read ends is held
/// back. NIOHTTP2 would keep all that it has read since a read that ended with a frame. DATA without
/// padding passes as it comes.
///
/// What the peer sends for streams that nobody serves is kept from it: DATA behind the peer's own
/// RST_STREAM, as grpc-java sends it for calls that run out of time as they begin, and what crosses this
/// server's last GOAWAY. NIOHTTP2 would end the connection, or stop reading (sections 5.1 and 6.8 have such
/// frames ignored). Their bytes count for the connection's window all the same, see `takeIgnoredBytes`.
///
/// A value: bytes of the peer go in, and those for NIOHTTP2 come out.
package struct PeerSettings {
  /// The connection preface of a client (RFC 9113 section 3.4).
  private static let prefaceLength = 24
  private static let headerLength = 9
  private static let (dataType, headersType, settingsType): (UInt8, UInt8, UInt8) = (0, 1, 4)
  private static let continuationType: UInt8 = 9
  private static let (acknowledgementFlag, endHeadersFlag): (UInt8, UInt8) = (1, 4)
  private static let paddedFlag: UInt8 = 8
  private static let (resetType, goAwayType, windowUpdateType): (UInt8, UInt8, UInt8) = (3, 7, 8)
  /// How many streams are remembered that the peer has reset.
  private static let mostResetStreams = 1024
  private static let (initialWindowSize, maxFrameSize): (UInt16, UInt16) = (4, 5)
  /// What SETTINGS_MAX_FRAME_SIZE may be (RFC 9113 section 6.5.2).
  private static let frameSizes: Range<UInt32> = 1 << 14..<1 << 24
  private static let acknowledgement: [UInt8] = [0, 0, 0, 4, 1, 0, 0, 0, 0]

  private enum Stage {
    case preface
    /// The acknowledgement is given, and the peer's own not yet seen.
    case acknowledged
    case complete
  }

  private struct Header {
    var length: Int
    var type: UInt8
    var flags: UInt8
    var stream: UInt32

    var isPaddedData: Bool {
      self.type == PeerSettings.dataType && self.flags & PeerSettings.paddedFlag != 0
    }

    /// Whether more of its header block follows in CONTINUATION.
    var isUnfinishedBlock: Bool {
      self.type == PeerSettings.headersType && self.flags & PeerSettings.endHeadersFlag == 0
    }

    var isAcknowledgement: Bool {
      self.length == 0 && self.type == PeerSettings.settingsType
        && self.flags == PeerSettings.acknowledgementFlag && self.stream == 0
    }
  }

  /// The largest frame that this server takes; a larger one is NIOHTTP2's to refuse, at once.
  private let maximum: Int
  /// What is held of a header block, in bytes and frames; a larger one is NIOHTTP2's to refuse.
  private let maximumBlock: Int
  private static let maximumBlockFrames = 65
  private var stage = Stage.preface
  /// Bytes to pass before the next frame begins.
  private var passing = Self.prefaceLength
  /// Bytes to leave out before the next frame begins.
  private var ignoring = 0
  private var ignoredBytes = 0
  /// The last streams that the peer has reset, in the order in which it did.
  private var resetStreams: Set<UInt32> = []
  private var resetOrder = CircularBuffer<UInt32>()
  /// The last stream that is served.
  package var lastStream = UInt32(Int32.max)
  /// What has come of a frame that is not whole.
  private var held = ByteBuffer()
  /// The largest frame that the peer takes.
  package private(set) var peerMaxFrameSize = FrameSplitter.least

  /// - Parameters:
  ///   - maximum: the largest frame that this server takes.
  ///   - maximumBlock: the largest header block, in bytes as they come.
  package init(maximum: Int = FrameSplitter.least, maximumBlock: Int = 80 * 1024) {
    self.maximum = maximum
    self.maximumBlock = maximumBlock
  }

  /// Whether the peer's acknowledgement has been kept, so that SETTINGS alone are changed any more.
  package var isComplete: Bool { self.stage == .complete }

  package mutating func received(_ bytes: ByteBuffer) -> ByteBuffer {
    let isContinued = self.held.readableBytes > 0
    var input = bytes
    if isContinued {
      self.held.writeImmutableBuffer(bytes)
      input = self.held
      self.held = ByteBuffer()
    }
    // Those of `input` that are neither in `output` nor dealt with begin at its reader index.
    var (output, index) = (ByteBuffer(), input.readerIndex)
    while true {
      if self.ignoring > 0 {
        let part = min(self.ignoring, input.writerIndex - index)
        self.ignoring -= part
        index += part
        input.moveReaderIndex(to: index)
        if self.ignoring > 0 { break }
      }
      let part = min(self.passing, input.writerIndex - index)
      index += part
      self.passing -= part
      guard self.passing == 0, let header = Self.header(input, at: index) else { break }
      if self.isForNobody(header), header.length <= self.maximum {
        Self.move(index - input.readerIndex, from: &input, to: &output)
        if header.type == Self.dataType { self.ignoredBytes += header.length }
        self.ignoring = Self.headerLength + header.length
        continue
      }
      let isPlainData = header.type == Self.dataType && !header.isPaddedData
      if isPlainData || header.length > self.maximum {
        self.frameBegan()
        index += Self.headerLength
        self.passing = header.length
        continue
      }
      guard let end = self.endOfWhole(header, input, at: index) else { break }
      if header.type == Self.resetType { self.wasReset(header.stream) }
      if header.type == Self.goAwayType, header.length >= 8 {
        // It names streams of ours, of which there are none; some name their own, which is no fault
        // that costs calls.
        input.setInteger(UInt32(0), at: index + Self.headerLength)
      }
      if self.passes(header) {
        index = end
      } else {
        Self.move(index - input.readerIndex, from: &input, to: &output)
        if let frame = input.readSlice(length: end - index) { self.change(frame, &output) }
        index = end
      }
    }
    let passed = input.readSlice(length: index - input.readerIndex) ?? ByteBuffer()
    if isContinued, passed.readableBytes + output.readableBytes == 0 {
      self.held = input  // whose memory is nobody else's: more is appended without a copy
    } else if input.readableBytes > 0 {
      self.held.writeImmutableBuffer(input)
    }
    if output.readableBytes == 0 { return passed }
    output.writeImmutableBuffer(passed)
    return output
  }

  private static func move(_ length: Int, from input: inout ByteBuffer, to output: inout ByteBuffer)
  {
    if let part = input.readSlice(length: length) { output.writeImmutableBuffer(part) }
  }

  private static func header(_ bytes: ByteBuffer, at index: Int) -> Header? {
    guard bytes.writerIndex - index >= Self.headerLength,
      let word = bytes.getInteger(at: index, as: UInt32.self),
      let flags = bytes.getInteger(at: index + 4, as: UInt8.self),
      let stream = bytes.getInteger(at: index + 5, as: UInt32.self)
    else { return nil }
    let type = UInt8(truncatingIfNeeded: word)
    // RFC 9113 section 4.1: the reserved bit means nothing.
    let number = stream & UInt32(Int32.max)
    return Header(length: Int(word >> 8), type: type, flags: flags, stream: number)
  }

  /// Bytes of DATA that have been left out since this was called last. The peer may send as many again on
  /// the connection.
  package mutating func takeIgnoredBytes() -> Int {
    defer { self.ignoredBytes = 0 }
    return self.ignoredBytes
  }

  private func isForNobody(_ header: Header) -> Bool {
    switch header.type {
    case Self.dataType:
      header.stream > self.lastStream
        || !self.resetStreams.isEmpty && self.resetStreams.contains(header.stream)
    case Self.resetType, Self.windowUpdateType: header.stream > self.lastStream
    default: false
    }
  }

  private mutating func wasReset(_ stream: UInt32) {
    guard self.resetStreams.insert(stream).inserted else { return }
    self.resetOrder.append(stream)
    if self.resetOrder.count > Self.mostResetStreams, let first = self.resetOrder.popFirst() {
      self.resetStreams.remove(first)
    }
  }

  /// Where a frame ends, or the header block that it begins; `nil` when that has not come.
  private func endOfWhole(_ header: Header, _ bytes: ByteBuffer, at index: Int) -> Int? {
    var end = index + Self.headerLength + header.length
    guard header.isUnfinishedBlock else { return end <= bytes.writerIndex ? end : nil }
    for _ in 1..<Self.maximumBlockFrames where end - index <= self.maximumBlock {
      guard end <= bytes.writerIndex, let next = Self.header(bytes, at: end) else { return nil }
      // A frame of another kind, or a large one, is NIOHTTP2's to refuse.
      guard next.type == Self.continuationType, next.length <= self.maximum else { return end }
      end += Self.headerLength + next.length
      if next.flags & Self.endHeadersFlag != 0 { break }
    }
    return end <= bytes.writerIndex ? end : nil
  }

  /// A peer that does not begin with its SETTINGS is NIOHTTP2's to refuse.
  private mutating func frameBegan() {
    if self.stage == .preface { self.stage = .complete }
  }

  /// Whether a frame passes as it is.
  private mutating func passes(_ header: Header) -> Bool {
    if header.isAcknowledgement, self.stage == .acknowledged { return false }
    let isChanged =
      header.type == Self.settingsType && header.flags & Self.acknowledgementFlag == 0
    if !isChanged { self.frameBegan() }
    return !isChanged
  }

  /// Adds a value to SETTINGS; keeps the peer's acknowledgement.
  private mutating func change(_ frame: ByteBuffer, _ output: inout ByteBuffer) {
    guard let header = Self.header(frame, at: frame.readerIndex), !header.isAcknowledgement else {
      self.stage = .complete
      return
    }
    var (values, content) = (frame, ByteBuffer())
    values.moveReaderIndex(forwardBy: Self.headerLength)
    var window: UInt32?
    while let (parameter, value) = values.readMultipleIntegers(as: (UInt16, UInt32).self) {
      // What it may not be is NIOHTTP2's to refuse, and nothing is written by it meanwhile.
      if parameter == Self.maxFrameSize, Self.frameSizes.contains(value) {
        self.peerMaxFrameSize = Int(value)
      }
      if parameter == Self.initialWindowSize, value <= UInt32(Int32.max) {
        window = value
      } else {
        content.writeInteger(parameter)
        content.writeInteger(value)
      }
    }
    // The last one only: NIOHTTP2 adds each to the window of each stream.
    if let window {
      content.writeInteger(Self.initialWindowSize)
      content.writeInteger(window)
    }
    content.writeImmutableBuffer(values)
    content.writeInteger(Self.maxFrameSize)
    content.writeInteger(UInt32(clamping: max(self.peerMaxFrameSize, FrameSplitter.told)))
    if content.readableBytes <= self.maximum {
      output.writeInteger(UInt32(content.readableBytes) << 8 | UInt32(header.type))
      output.writeInteger(header.flags)
      output.writeInteger(header.stream)
      output.writeImmutableBuffer(content)
    } else {
      output.writeImmutableBuffer(frame)  // two thousand values that mean nothing
    }
    if self.stage == .preface {
      output.writeBytes(Self.acknowledgement)
      self.stage = .acknowledged
    }
  }
}

/// Sits below NIOHTTP2, and changes what that hears of SETTINGS.
///
/// It also announces the limit of concurrent streams, which NIOHTTP2 must not know: past it, that
/// would end the connection where RFC 9113 section 5.1.2 asks for an error of the stream.
/// `ConnectionHandler` keeps the limit.
package final class PeerSettingsHandler: ChannelDuplexHandler {
  package typealias InboundIn = ByteBuffer
  package typealias InboundOut = ByteBuffer
  package typealias OutboundIn = IOData
  package typealias OutboundOut = IOData

  private static let settingsStart = 9
  private static let settingLength = 6
  private static let maxConcurrentStreams: UInt16 = 3

  private var settings: PeerSettings
  private let maxConcurrentStreams: Int
  private let writer: WriteCoalescer
  private var hasAnnounced = false
  /// Whether this server has said its last. What a peer sends until it has heard of that is for nobody,
  /// and NIOHTTP2 would keep it.
  private var isClosing = false

  /// - Parameters:
  ///   - maxFrameSize: the largest frame that this server takes.
  ///   - maxHeaderBlock: the largest header block that it takes, in bytes as they come.
  ///   - writer: the handler below, which is told how large frames may be.
  package init(
    maxConcurrentStreams: Int,
    maxFrameSize: Int,
    maxHeaderBlock: Int,
    writer: WriteCoalescer
  ) {
    self.settings = PeerSettings(maximum: maxFrameSize, maximumBlock: maxHeaderBlock)
    self.maxConcurrentStreams = maxConcurrentStreams
    self.writer = writer
  }

  package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard !self.isClosing else { return }
    self.settings.lastStream = self.writer.lastAnnouncedStream
    let bytes = self.settings.received(self.unwrapInboundIn(data))
    self.writer.limitFrames(to: self.settings.peerMaxFrameSize)
    self.giveBack(self.settings.takeIgnoredBytes(), context: context)
    if bytes.readableBytes > 0 { context.fireChannelRead(self.wrapInboundOut(bytes)) }
  }

  /// Opens the connection's window for what NIOHTTP2 has not heard of.
  private func giveBack(_ bytes: Int, context: ChannelHandlerContext) {
    guard bytes > 0 else { return }
    // Length 4, type WINDOW_UPDATE, no flags, stream 0.
    var frame = ByteBuffer(bytes: [0, 0, 4, 8, 0, 0, 0, 0, 0])
    frame.writeInteger(UInt32(clamping: bytes))
    context.writeAndFlush(self.wrapOutboundOut(.byteBuffer(frame)), promise: nil)
  }

  package func close(
    context: ChannelHandlerContext,
    mode: CloseMode,
    promise: EventLoopPromise<Void>?
  ) {
    self.isClosing = true
    context.close(mode: mode, promise: promise)
  }

  package func write(
    context: ChannelHandlerContext,
    data: NIOAny,
    promise: EventLoopPromise<Void>?
  ) {
    guard !self.hasAnnounced, case .byteBuffer(var frame) = self.unwrapOutboundIn(data) else {
      context.write(data, promise: promise)
      return
    }
    // The first that NIOHTTP2 writes are its SETTINGS, in one buffer.
    self.hasAnnounced = true
    var index = frame.readerIndex + Self.settingsStart
    while let parameter = frame.getInteger(at: index, as: UInt16.self) {
      if parameter == Self.maxConcurrentStreams {
        frame.setInteger(UInt32(clamping: self.maxConcurrentStreams), at: index + 2)
      }
      index += Self.settingLength
    }
    context.write(self.wrapOutboundOut(.byteBuffer(frame)), promise: promise)
  }
}
