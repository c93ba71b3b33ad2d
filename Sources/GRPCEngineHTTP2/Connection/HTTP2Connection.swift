package import NIOCore

/// A stream of a connection.
package struct StreamKey: Hashable, Sendable {
  /// The peer's number of it.
  package let id: Int
  /// Which of the places of the connection's streams it has: small numbers, used again.
  package let place: Int
}

/// The server's side of one HTTP/2 connection (RFC 9113), without I/O.
///
/// What is read goes in through ``received(_:)``, and ``next(at:)`` says what it means; what is to be sent
/// goes in through ``sendHeaders(_:on:)`` and its like, and comes out as bytes through ``takeOutput(_:)``,
/// as far as the peer's windows and the socket let it. What has left, and which streams that ended, is told by
/// ``nextProgress()``.
///
/// It keeps the rules of frames, streams, windows and header compression, answers SETTINGS and PING, and
/// bounds what a peer may cost. When to drain, to ping, and to open windows is its user's to say.
///
/// Every operation costs what it is about, whatever else is open; but a changed SETTINGS_INITIAL_WINDOW_SIZE is
/// about every stream.
///
/// It can't be copied: it is a connection's state, and large.
package struct HTTP2Connection: ~Copyable {
  package enum Event {
    /// The headers of a new stream.
    case request(StreamKey, HeaderBlock, isEnd: Bool)
    /// DATA, with the length that counts for windows.
    case data(StreamKey, ByteBuffer, windowLength: Int, isEnd: Bool)
    /// HEADERS that end a request.
    case trailers(StreamKey, HeaderBlock)
    /// A stream is gone: the peer has reset it, or this server has, for what the peer did.
    case reset(StreamKey, HTTP2ErrorCode, isByPeer: Bool)
    /// A stream was not opened, since there are too many.
    case refused
    /// The peer's SETTINGS, which hold from now on.
    case settings
    /// A ping, which is answered.
    case ping
    case pingAnswer(UInt64)
  }

  /// What has become of something that was to be sent.
  package enum Progress: Equatable {
    /// What was given to a stream has left: messages, or headers that had to wait.
    case outputLeft(StreamKey)
    /// A part of what had to wait has left.
    case partLeft(StreamKey)
    /// The end of an answer has left, before that of its request has come.
    case endLeft(StreamKey)
    /// Both sides of a stream have ended: it is gone.
    case closed(StreamKey)
  }

  /// Bytes of what can't wait, answers to pings and the like, past which the peer is given up: it does not
  /// read what it demands.
  private static let outputLimit = 1 << 20
  /// CONTINUATION frames of one header block.
  private static let mostContinuations = 64
  /// SETTINGS, and DATA without content, in a second.
  private static let mostIdleFrames = 1000
  /// Windows of streams that SETTINGS change, in a second: the one thing that costs what is open.
  private static let mostWindowChanges = 100_000
  /// Streams that this server resets for what the peer does on them, in half a minute.
  private static let mostStreamErrors = 1000

  let settings: HTTP2Settings
  private var reader: FrameReader
  private var decoder = HPACKDecoder()
  var encoder = HPACKEncoder()
  var output = FrameOutput()
  var streams = StreamTable()
  var progress = ProgressQueue()

  /// The header block that is being gathered.
  private var block: (header: FrameHeader, bytes: ByteBuffer, continuations: Int)?
  private var hasGreeted = false
  /// SETTINGS_INITIAL_WINDOW_SIZE, as it was announced last.
  private var streamWindow: Int
  /// By how much each of this server's SETTINGS lowers the windows of streams, of those that the peer may not
  /// have read.
  private var unacknowledgedLowerings = CircularBuffer<Int>()
  /// By how much they do together.
  private var unacknowledgedWindow = 0
  /// The last stream of the peer's that was heard of.
  package private(set) var lastStream = 0
  /// What the last GOAWAY named: no further one may name more (section 6.8).
  var announcedLast = HTTP2Settings.largestWindow

  // The peer's.
  private var peerInitialWindow = HTTP2Settings.initialWindow
  private(set) var peerMaxFrameSize = HTTP2Settings.leastFrameSize
  /// Bytes of DATA that may be sent on the connection.
  var sendWindow = HTTP2Settings.initialWindow
  /// Bytes of DATA that may come on the connection.
  package internal(set) var receiveWindow = HTTP2Settings.initialWindow

  /// Whether the socket takes more at the moment.
  package var isWritable = true
  /// Streams that have something to send, and wait for the socket.
  var ready = StreamQueue()
  /// Streams that have something to send, and wait for the connection's window.
  var starved = StreamQueue()
  /// How many frames have been read.
  private var frames = 0
  /// How many frames of HEADERS, DATA and WINDOW_UPDATE have left.
  package internal(set) var sentFrames = 0

  private var resetRate: FrameRate
  private var settingsRate = FrameRate(most: Self.mostIdleFrames)
  private var windowChangeRate = FrameRate(most: Self.mostWindowChanges)
  private var emptyDataRate = FrameRate(most: Self.mostIdleFrames)
  private var streamErrorRate = FrameRate(most: Self.mostStreamErrors, in: .seconds(30))

  /// Begins with this server's SETTINGS.
  package init(_ settings: HTTP2Settings) {
    self.settings = settings
    self.streamWindow = HTTP2Settings.initialWindow
    self.reader = FrameReader(
      maximumFrameSize: settings.maxFrameSize,
      maximumBlock: settings.maxHeaderBlock
    )
    self.resetRate = FrameRate(most: settings.maxResets, in: .seconds(5))
    self.announce(
      window: settings.streamWindow,
      [
        (HTTP2Setting.maxConcurrentStreams, settings.maxConcurrentStreams),
        (HTTP2Setting.initialWindowSize, settings.streamWindow),
        (HTTP2Setting.maxFrameSize, settings.maxFrameSize),
        (HTTP2Setting.maxHeaderListSize, settings.maxHeaderListSize),
      ]
    )
  }

  /// Has all streams, those to come and those that are open, begin with another window (section 6.9.2).
  /// Those that have used more than a smaller one can't be sent on until theirs is opened.
  package mutating func changeStreamWindow(to window: Int) {
    let change = window - self.streamWindow
    for place in self.streams.occupied { self.streams[place].receiveWindow += change }
    self.announce(window: window, [(HTTP2Setting.initialWindowSize, window)])
  }

  /// Whether the peer may not know yet that the windows of streams are smaller.
  package var awaitsSmallerWindow: Bool { self.unacknowledgedWindow > 0 }

  /// Writes SETTINGS.
  private mutating func announce(window: Int, _ values: [(UInt16, Int)]) {
    let lowering = max(0, self.streamWindow - window)
    self.streamWindow = window
    self.unacknowledgedLowerings.append(lowering)
    self.unacknowledgedWindow += lowering
    self.output.write(FrameHeader(length: 6 * values.count, type: FrameType.settings, stream: 0))
    for (parameter, value) in values {
      self.output.write { $0.writeMultipleIntegers(parameter, UInt32(clamping: value)) }
    }
  }

  /// Bytes that are held for no stream: what has come of a frame or of a header block, and what the socket does
  /// not take.
  package var overhead: Int {
    self.output.count + self.reader.count + (self.block?.bytes.readableBytes ?? 0)
  }

  /// Which frame or header block has come in part, as a number that others do not have; `nil` for none. DATA is told
  /// as it comes, and does not count.
  package var unfinished: Int? {
    if let block = self.block { return -block.header.stream }
    return self.reader.count > 0 ? self.frames : nil
  }

  package var openStreams: Int { self.streams.count }

  /// The stream with a number; `nil` when it is not open.
  package mutating func key(of id: Int) -> StreamKey? {
    self.streams.place(of: id).map { StreamKey(id: id, place: $0) }
  }

  // MARK: From the peer

  /// Takes what has been read; `next` is to be called until it returns `nil`.
  package mutating func received(_ bytes: ByteBuffer) { self.reader.append(bytes) }

  /// What has been read means next; `nil` when all has been told.
  ///
  /// - Parameter now: the time, by which floods are known.
  /// - Throws: what ends the connection. Nothing may be asked any more then.
  package mutating func next(at now: NIODeadline) throws(HTTP2ConnectionError) -> Event? {
    while let piece = try self.reader.next() {
      if let event = try self.event(of: piece, now) { return event }
    }
    return nil
  }

  private mutating func event(
    of piece: FrameReader.Piece,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    switch piece {
    case .data(let header, let content, let windowLength, let isFirst, let isLast):
      if isFirst {
        self.frames &+= 1
        try self.check(header)
      }
      let isEnd = isLast && header.has(FrameFlag.endStream)
      if isFirst, isLast, !isEnd, content.readableBytes == 0 { try self.countEmptyData(now) }
      return try self.data(header.stream, content, windowLength, isEnd: isEnd, now)
    case .frame(let header, let content):
      self.frames &+= 1
      try self.check(header)
      return try self.event(of: header, content, now)
    }
  }

  /// What holds for every frame.
  private mutating func check(_ header: FrameHeader) throws(HTTP2ConnectionError) {
    if !self.hasGreeted {
      // Section 3.4.
      guard header.type == FrameType.settings, !header.has(FrameFlag.acknowledgement) else {
        throw HTTP2ConnectionError(.protocolError, "The first frame must be SETTINGS")
      }
      self.hasGreeted = true
    }
    if let block = self.block {
      // Section 6.10.
      guard header.type == FrameType.continuation, header.stream == block.header.stream else {
        throw HTTP2ConnectionError(.protocolError, "A frame amid a header block")
      }
    }
    if self.output.count > Self.outputLimit {
      throw HTTP2ConnectionError(.enhanceYourCalm, "The answers to control frames are not read")
    }
  }

  private mutating func event(
    of header: FrameHeader,
    _ content: ByteBuffer,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    var content = content
    switch header.type {
    case FrameType.headers:
      guard header.stream != 0 else { throw Self.onConnection("HEADERS") }
      let priority = header.has(FrameFlag.priority) ? 5 : 0
      guard header.length >= (header.has(FrameFlag.padded) ? 1 : 0) + priority else {
        throw HTTP2ConnectionError.badLength("HEADERS")
      }
      try Self.removePadding(of: header, from: &content)
      guard content.readableBytes >= priority else { throw HTTP2ConnectionError.tooMuchPadding }
      content.moveReaderIndex(forwardBy: priority)
      return try self.blockFragment(header, content, now)
    case FrameType.continuation:
      return try self.blockFragment(header, content, now)
    case FrameType.priority:
      return try self.priority(header, now)
    case FrameType.reset:
      return try self.reset(header, content, now)
    case FrameType.settings:
      return try self.settings(header, content, now)
    case FrameType.pushPromise:
      throw HTTP2ConnectionError(.protocolError, "A client can't push")
    case FrameType.ping:
      return try self.ping(header, content)
    case FrameType.goAway:
      // It names streams of ours, of which there are none.
      guard header.stream == 0 else { throw Self.onStream("GOAWAY") }
      guard header.length >= 8 else { throw HTTP2ConnectionError.badLength("GOAWAY") }
      return nil
    case FrameType.windowUpdate:
      return try self.windowUpdate(header, content, now)
    default:
      return nil  // Section 4.1: what is not known is ignored.
    }
  }

  private static func onConnection(_ frame: String) -> HTTP2ConnectionError {
    HTTP2ConnectionError(.protocolError, "\(frame) without a stream")
  }

  private static func onStream(_ frame: String) -> HTTP2ConnectionError {
    HTTP2ConnectionError(.protocolError, "\(frame) on a stream")
  }

  private func idle(_ frame: String, _ id: Int) -> HTTP2ConnectionError {
    HTTP2ConnectionError(.protocolError, "\(frame) on stream \(id), which was never opened")
  }

  /// Whether a stream has never been opened (section 5.1): the even ones are this server's, which opens none.
  private func isIdle(_ id: Int) -> Bool { id > self.lastStream || id % 2 == 0 }

  private mutating func countEmptyData(_ now: NIODeadline) throws(HTTP2ConnectionError) {
    if self.emptyDataRate.isExceeded(at: now) {
      throw HTTP2ConnectionError(.enhanceYourCalm, "too_many_empty_frames")
    }
  }

  private static func removePadding(
    of header: FrameHeader,
    from content: inout ByteBuffer
  ) throws(HTTP2ConnectionError) {
    guard header.has(FrameFlag.padded) else { return }
    guard let padding = content.readInteger(as: UInt8.self) else {
      throw HTTP2ConnectionError.badLength("Padding")
    }
    guard let rest = content.readSlice(length: content.readableBytes - Int(padding)) else {
      throw HTTP2ConnectionError.tooMuchPadding
    }
    content = rest
  }

  // MARK: DATA

  private mutating func data(
    _ id: Int,
    _ content: ByteBuffer,
    _ length: Int,
    isEnd: Bool,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    guard id != 0 else { throw Self.onConnection("DATA") }
    guard length <= self.receiveWindow else {
      throw HTTP2ConnectionError(.flowControlError, "DATA past the connection's window")
    }
    self.receiveWindow -= length
    guard let place = self.streams.place(of: id) else {
      guard !self.isIdle(id) else { throw self.idle("DATA", id) }
      return nil  // What was under way as the stream ended.
    }
    let stream = self.streams[place]
    guard !stream.isRemoteEnded else { return try self.fail(place, .streamClosed, now) }
    // Until the peer has read of a smaller window, the one before holds (section 6.9.3).
    guard length <= stream.receiveWindow + self.unacknowledgedWindow else {
      return try self.fail(place, .flowControlError, now)
    }
    var contentLeft = stream.contentLeft
    if let left = contentLeft {
      contentLeft = left - content.readableBytes
      guard left >= content.readableBytes, !isEnd || left == content.readableBytes else {
        return try self.fail(place, .protocolError, now)  // section 8.1.1
      }
    }
    self.streams[place].receiveWindow -= length
    self.streams[place].contentLeft = contentLeft
    if isEnd { self.remoteEnded(place) }
    return .data(
      StreamKey(id: id, place: place),
      content,
      windowLength: length,
      isEnd: isEnd
    )
  }

  private mutating func remoteEnded(_ place: Int) {
    self.streams[place].isRemoteEnded = true
    if self.streams[place].isLocalEnded { self.close(place) }
  }

  /// Both sides have ended.
  mutating func close(_ place: Int) {
    self.progress.append(.closed(StreamKey(id: self.streams[place].id, place: place)))
    self.streams.remove(at: place)
  }

  /// An error of a stream (section 5.4.2).
  private mutating func fail(
    _ place: Int,
    _ code: HTTP2ErrorCode,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event {
    let key = StreamKey(id: self.streams[place].id, place: place)
    try self.countStreamError(now)
    self.reset(key, code)
    return .reset(key, code, isByPeer: false)
  }

  /// It may have cost a call that goes on here, so it is bounded as the peer's own resets are.
  private mutating func countStreamError(_ now: NIODeadline) throws(HTTP2ConnectionError) {
    if self.streamErrorRate.isExceeded(at: now) {
      throw HTTP2ConnectionError(.enhanceYourCalm, "too_many_stream_errors")
    }
  }

  /// Resets a stream with PROTOCOL_ERROR: what came on it is malformed, as its user finds (section 8.1.1).
  ///
  /// - Throws: what ends the connection, where that has been too often.
  package mutating func refuse(
    _ key: StreamKey,
    at now: NIODeadline
  ) throws(HTTP2ConnectionError) {
    try self.countStreamError(now)
    self.reset(key, .protocolError)
  }

  // MARK: HEADERS

  private mutating func blockFragment(
    _ header: FrameHeader,
    _ content: ByteBuffer,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    if header.type == FrameType.continuation {
      guard var block = self.block else {
        throw HTTP2ConnectionError(.protocolError, "CONTINUATION without HEADERS")
      }
      self.block = nil  // so that its bytes are appended to in place
      block.bytes.writeImmutableBuffer(content)
      block.continuations += 1
      self.block = block
    } else if header.has(FrameFlag.endHeaders) {
      try self.checkBlock(content.readableBytes, 0)
      return try self.headers(header, content, now)
    } else {
      var own = ByteBuffer()
      own.writeImmutableBuffer(content)
      self.block = (header, own, 0)
    }
    guard let block = self.block else { return nil }
    try self.checkBlock(block.bytes.readableBytes, block.continuations)
    guard header.has(FrameFlag.endHeaders) else { return nil }
    self.block = nil
    return try self.headers(block.header, block.bytes, now)
  }

  private func checkBlock(_ length: Int, _ continuations: Int) throws(HTTP2ConnectionError) {
    guard length <= self.settings.maxHeaderBlock, continuations <= Self.mostContinuations else {
      throw HTTP2ConnectionError(.enhanceYourCalm, "A header block that is too large")
    }
  }

  private mutating func headers(
    _ header: FrameHeader,
    _ bytes: ByteBuffer,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    let block: HeaderBlock
    do {
      block = try self.decoder.decode(bytes, maximumSize: self.settings.maxHeaderListSize)
    } catch {
      throw HTTP2ConnectionError(.compressionError, "A header block that is no HPACK: \(error)")
    }
    let (id, isEnd) = (header.stream, header.has(FrameFlag.endStream))
    guard id % 2 == 1 else { throw self.idle("HEADERS", id) }
    if id > self.lastStream { return try self.request(id, block, isEnd: isEnd, now) }
    guard let place = self.streams.place(of: id) else {
      // What was under way as the stream ended has to be borne; trailers can be known from a request.
      if id <= self.announcedLast, block.list.fields.contains(where: \.isPseudo) {
        throw HTTP2ConnectionError(
          .protocolError,
          "Stream \(id) is opened after \(self.lastStream)"
        )
      }
      return nil
    }
    guard !self.streams[place].isRemoteEnded else {
      return try self.fail(place, .streamClosed, now)
    }
    // Section 8.1: nothing but the end comes behind DATA.
    guard isEnd, self.streams[place].contentLeft ?? 0 == 0 else {
      return try self.fail(place, .protocolError, now)
    }
    self.remoteEnded(place)
    return .trailers(StreamKey(id: id, place: place), block)
  }

  private mutating func request(
    _ id: Int,
    _ block: HeaderBlock,
    isEnd: Bool,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    self.lastStream = id
    guard id <= self.announcedLast else { return nil }  // Section 6.8: it has been told.
    guard self.streams.count < self.settings.maxConcurrentStreams else {
      // Section 8.7: REFUSED_STREAM says that nothing was done, so a retry is safe.
      self.writeReset(id, .refusedStream)
      return .refused
    }
    let place = self.streams.insert(
      HTTP2Stream(
        id: id,
        sendWindow: self.peerInitialWindow,
        receiveWindow: self.streamWindow,
        contentLeft: block.contentLength.value,
        isRemoteEnded: isEnd
      )
    )
    let isContentMissing = isEnd && (block.contentLength.value ?? 0) != 0
    if block.contentLength == .malformed || isContentMissing {
      // Nobody has heard of the stream.
      _ = try self.fail(place, .protocolError, now)
      return .refused
    }
    return .request(StreamKey(id: id, place: place), block, isEnd: isEnd)
  }

  // MARK: Other frames

  private mutating func priority(
    _ header: FrameHeader,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    guard header.stream != 0 else { throw Self.onConnection("PRIORITY") }
    guard header.length != 5 else { return nil }
    guard let place = self.streams.place(of: header.stream) else {
      throw HTTP2ConnectionError.badLength("PRIORITY")
    }
    return try self.fail(place, .frameSizeError, now)
  }

  private mutating func reset(
    _ header: FrameHeader,
    _ content: ByteBuffer,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    guard header.stream != 0 else { throw Self.onConnection("RST_STREAM") }
    guard header.length == 4, let code = content.peekInteger(as: UInt32.self) else {
      throw HTTP2ConnectionError.badLength("RST_STREAM")
    }
    guard !self.isIdle(header.stream) else { throw self.idle("RST_STREAM", header.stream) }
    guard let place = self.streams.place(of: header.stream) else { return nil }
    if self.resetRate.isExceeded(at: now) {
      throw HTTP2ConnectionError(.enhanceYourCalm, "too_many_resets")
    }
    self.streams.remove(at: place)
    return .reset(
      StreamKey(id: header.stream, place: place),
      HTTP2ErrorCode(rawValue: code),
      isByPeer: true
    )
  }

  private mutating func ping(
    _ header: FrameHeader,
    _ content: ByteBuffer
  ) throws(HTTP2ConnectionError) -> Event? {
    guard header.stream == 0 else { throw Self.onStream("PING") }
    guard header.length == 8, let data = content.peekInteger(as: UInt64.self) else {
      throw HTTP2ConnectionError.badLength("PING")
    }
    if header.has(FrameFlag.acknowledgement) { return .pingAnswer(data) }
    self.writePing(data, isAnswer: true)
    return .ping
  }

  private mutating func windowUpdate(
    _ header: FrameHeader,
    _ content: ByteBuffer,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    guard header.length == 4, let word = content.peekInteger(as: UInt32.self) else {
      throw HTTP2ConnectionError.badLength("WINDOW_UPDATE")
    }
    let increment = Int(word & 0x7FFF_FFFF)
    guard header.stream != 0 else {
      guard increment > 0 else {
        throw HTTP2ConnectionError(.protocolError, "WINDOW_UPDATE of nothing")
      }
      self.sendWindow += increment
      guard self.sendWindow <= HTTP2Settings.largestWindow else {
        throw HTTP2ConnectionError(.flowControlError, "A window past 2^31 - 1")
      }
      return nil
    }
    guard !self.isIdle(header.stream) else { throw self.idle("WINDOW_UPDATE", header.stream) }
    guard let place = self.streams.place(of: header.stream) else { return nil }
    guard increment > 0 else { return try self.fail(place, .protocolError, now) }
    self.streams[place].sendWindow += increment
    guard self.streams[place].sendWindow <= HTTP2Settings.largestWindow else {
      return try self.fail(place, .flowControlError, now)
    }
    self.list(place)
    return nil
  }

  // MARK: SETTINGS

  private mutating func settings(
    _ header: FrameHeader,
    _ content: ByteBuffer,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) -> Event? {
    guard header.stream == 0 else { throw Self.onStream("SETTINGS") }
    guard !header.has(FrameFlag.acknowledgement) else {
      guard header.length == 0 else {
        throw HTTP2ConnectionError.badLength("An acknowledgement of SETTINGS")
      }
      self.unacknowledgedWindow -= self.unacknowledgedLowerings.popFirst() ?? 0
      return nil
    }
    guard header.length % 6 == 0 else { throw HTTP2ConnectionError.badLength("SETTINGS") }
    if self.settingsRate.isExceeded(at: now) {
      throw HTTP2ConnectionError(.enhanceYourCalm, "too_many_settings")
    }
    var (content, window, largest) = (content, self.peerInitialWindow, self.peerInitialWindow)
    while let (parameter, value) = content.readMultipleIntegers(as: (UInt16, UInt32).self) {
      let value = Int(value)
      switch parameter {
      case HTTP2Setting.headerTableSize: self.encoder.limitTable(to: value)
      case HTTP2Setting.enablePush where value > 1:
        throw HTTP2ConnectionError(.protocolError, "SETTINGS_ENABLE_PUSH is \(value)")
      case HTTP2Setting.initialWindowSize:
        guard value <= HTTP2Settings.largestWindow else {
          throw HTTP2ConnectionError(.flowControlError, "SETTINGS_INITIAL_WINDOW_SIZE is \(value)")
        }
        window = value
        largest = max(largest, value)
      case HTTP2Setting.maxFrameSize:
        guard 1 << 14..<1 << 24 ~= value else {
          throw HTTP2ConnectionError(.protocolError, "SETTINGS_MAX_FRAME_SIZE is \(value)")
        }
        self.peerMaxFrameSize = value
      default: break
      }
    }
    try self.changeWindows(to: window, largest: largest, now)
    self.output.write(
      FrameHeader(length: 0, type: FrameType.settings, flags: FrameFlag.acknowledgement, stream: 0)
    )
    return .settings
  }

  /// The peer's new window is that of all streams (section 6.9.2).
  ///
  /// - Parameter largest: the largest one that its SETTINGS went through. Each of their values holds in turn
  ///   (section 6.5.3), so that none may be too large; but streams are gone through once.
  private mutating func changeWindows(
    to window: Int,
    largest: Int,
    _ now: NIODeadline
  ) throws(HTTP2ConnectionError) {
    let change = window - self.peerInitialWindow
    let rise = largest - self.peerInitialWindow
    guard change != 0 || rise != 0 else { return }
    if self.windowChangeRate.isExceeded(at: now, cost: self.streams.count) {
      throw HTTP2ConnectionError(.enhanceYourCalm, "too_many_window_changes")
    }
    self.peerInitialWindow = window
    for place in self.streams.occupied {
      guard self.streams[place].sendWindow + rise <= HTTP2Settings.largestWindow else {
        throw HTTP2ConnectionError(.flowControlError, "A window past 2^31 - 1")
      }
      self.streams[place].sendWindow += change
      if change > 0 { self.list(place) }
    }
  }
}

/// The parameters of SETTINGS (section 6.5.2).
enum HTTP2Setting {
  static let headerTableSize: UInt16 = 1
  static let enablePush: UInt16 = 2
  static let maxConcurrentStreams: UInt16 = 3
  static let initialWindowSize: UInt16 = 4
  static let maxFrameSize: UInt16 = 5
  static let maxHeaderListSize: UInt16 = 6
}
