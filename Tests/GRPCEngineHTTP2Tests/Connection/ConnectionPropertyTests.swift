import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

@testable import GRPCEngineHTTP2

/// Random scripts of a good client and of what a server does, against a model of the client.
struct ConnectionPropertyTests {
  @Test("What is sent arrives as it was sent, within the client's limits", arguments: 0..<20)
  func scripts(chunk: UInt64) throws {
    for seed in 0..<UInt64(100) {
      var script = Script(seed: chunk << 32 | seed)
      do {
        for _ in 0..<100 { try script.step() }
        try script.finish()
      } catch {
        Issue.record("\(error) (chunk \(chunk), seed \(seed))")
        return
      }
    }
  }
}

/// What a script found wrong.
private struct Fault: Error {
  let what: String
  init(_ what: String) { self.what = what }
}

private func check(_ holds: Bool, _ what: @autoclosure () -> String) throws {
  if !holds { throw Fault(what()) }
}

/// A connection between a server and a client that both do what they may, at random.
private struct Script: ~Copyable {
  /// A stream, as its client and the server's user see it.
  private struct Stream {
    let key: StreamKey
    /// Bytes of DATA that may come to the client.
    var window: Int
    /// Bytes of DATA that the client may send.
    var sendWindow: Int
    /// How many SETTINGS had been sent when it was opened: the windows of later ones are added.
    let settings: Int
    /// Where its content begins in the common bytes.
    let offset: Int

    // The server's user.
    var lists: [HPACKHeaders] = []
    var sent = 0
    var hasEnded = false
    var hasUntoldMessages = false
    var hasToldEnd = false

    // The client.
    var received = 0
    var receivedLists = 0
    var hasReceivedEnd = false
    var hasSentEnd = false
    var unconfirmed = 0
  }

  private static let content: ByteBuffer = {
    var random = SplitMix(seed: 1)
    return ByteBuffer(bytes: (0..<(1 << 16)).map { _ in UInt8(truncatingIfNeeded: random.next()) })
  }()
  private static let largest = 60_000

  private var random: SplitMix
  private var connection: HTTP2Connection
  private var writer = FrameWriter()
  private var reader = ClientReader()
  private var streams: [Int: Stream] = [:]
  private var nextStream = 1
  /// Streams that are gone, and how their answers came to be cut off.
  private var reset: Set<Int> = []
  private var closed: Set<Int> = []

  // The client's.
  private var window = 65_535
  private var sendWindow = 65_535
  private var initialWindow = 65_535
  private var frameSize = 16_384
  /// SETTINGS that have not been acknowledged: the change of windows, and the size of frames.
  private var pending: [(change: Int, frameSize: Int)] = []
  private var sentSettings = 0
  private var acknowledged = 0
  private var now = NIODeadline.uptimeNanoseconds(1)
  private var unconfirmed = 0

  init(seed: UInt64) {
    self.random = SplitMix(seed: seed)
    var settings = HTTP2Settings()
    settings.streamWindow = [100, 5000, 65_535, 100_000].randomElement(using: &self.random) ?? 0
    settings.maxConcurrentStreams = 20
    self.connection = HTTP2Connection(settings)
    self.serverStreamWindow = settings.streamWindow
    self.writer.preface()
    self.writer.settings()
    self.pending.append((0, self.frameSize))
    self.sentSettings = 1
  }

  private let serverStreamWindow: Int

  private mutating func number(_ range: Range<Int>) -> Int {
    Int.random(in: range, using: &self.random)
  }

  /// Often a few bytes, at times very many.
  private mutating func size() -> Int {
    switch self.number(0..<10) {
    case 0: 0
    case 1..<7: self.number(1..<100)
    case 7, 8: self.number(1..<20_000)
    default: self.number(1..<40_000)
    }
  }

  private mutating func anyStream() -> Stream? {
    self.streams.isEmpty
      ? nil : self.streams[self.streams.keys.sorted()[self.number(0..<self.streams.count)]]
  }

  // MARK: Steps

  mutating func step() throws {
    self.now = self.now + .milliseconds(1)
    switch self.number(0..<24) {
    case 0, 1: self.open()
    case 2: self.clientData()
    case 3: self.clientEnd()
    case 4: self.clientReset()
    case 5, 6: self.openWindows(by: self.size())
    case 7: self.changeSettings()
    case 8: self.writer.ping(self.random.next())
    case 9, 10: try self.deliver()
    case 11...15: try self.serverData()
    case 16, 17: try self.serverHeaders()
    case 18: try self.serverEnd()
    case 19: self.serverReset()
    case 20:
      self.connection.isWritable.toggle()
    case 21:
      self.connection.sendWaiting()
    default:
      try self.drain()
    }
    try self.progress()
  }

  private mutating func open() {
    guard self.streams.count < 20 else { return }
    let id = self.nextStream
    self.nextStream += 2 * self.number(1..<3)
    let isEnd = self.number(0..<3) == 0
    self.writer.headers(
      FrameWriter.request("/\(id % 7)"),
      on: id,
      isEnd: isEnd,
      fragment: self.number(0..<2) == 0 ? 16_384 : self.number(1..<60) + 5
    )
    // The server hears of all this before anything is done on the stream.
    self.streams[id] = Stream(
      key: StreamKey(id: id, place: -1),
      window: self.initialWindow,
      sendWindow: self.serverStreamWindow,
      settings: self.sentSettings,
      offset: self.number(0..<1000),
      hasSentEnd: isEnd
    )
  }

  private mutating func clientData() {
    guard let stream = self.anyStream(), !stream.hasSentEnd else { return }
    let length = min(self.size(), stream.sendWindow, self.sendWindow, 16_000)
    guard length > 0 else { return }
    let isEnd = self.number(0..<5) == 0
    self.sendWindow -= length
    self.streams[stream.key.id]?.sendWindow -= length
    self.streams[stream.key.id]?.hasSentEnd = isEnd
    let isPadded = length > 100 && self.number(0..<3) == 0
    let content = ByteBuffer(repeating: 0, count: isPadded ? length - 51 : length)
    self.writer.data(content, on: stream.key.id, isEnd: isEnd, padding: isPadded ? 50 : nil)
  }

  private mutating func clientEnd() {
    guard let stream = self.anyStream(), !stream.hasSentEnd else { return }
    self.streams[stream.key.id]?.hasSentEnd = true
    if self.number(0..<2) == 0 {
      self.writer.headers(["a": "b"], on: stream.key.id, isEnd: true)
    } else {
      self.writer.data(ByteBuffer(), on: stream.key.id, isEnd: true)
    }
  }

  private mutating func clientReset() {
    guard self.number(0..<3) == 0, let stream = self.anyStream() else { return }
    self.writer.reset(stream.key.id)
    self.forget(stream.key.id)
  }

  private mutating func forget(_ id: Int) {
    self.streams[id] = nil
    self.reset.insert(id)
  }

  private mutating func openWindows(by increment: Int) {
    guard increment > 0 else { return }
    if self.number(0..<3) == 0 {
      let increment = min(increment, 3000)
      self.window += increment
      self.writer.windowUpdate(0, increment: increment)
    }
    guard let stream = self.anyStream() else { return }
    self.streams[stream.key.id]?.window += increment
    self.writer.windowUpdate(stream.key.id, increment: increment)
  }

  private mutating func changeSettings() {
    var (values, change) = ([(UInt16, UInt32)](), 0)
    if self.number(0..<2) == 0 {
      let window = [0, 1, 50, 3000, 65_535, 100_000].randomElement(using: &self.random) ?? 0
      change = window - self.initialWindow
      self.initialWindow = window
      values.append((4, UInt32(window)))
    }
    var size = self.pending.last?.frameSize ?? self.frameSize
    if self.number(0..<2) == 0 {
      size = [16_384, 20_000, 100_000].randomElement(using: &self.random) ?? 0
      values.append((5, UInt32(size)))
    }
    if self.number(0..<2) == 0 {
      values.append((1, [0, 50, 200, 4096, 1 << 20].randomElement(using: &self.random) ?? 0))
    }
    self.pending.append((change, size))
    self.sentSettings += 1
    self.writer.settings(values)
    if self.number(0..<2) == 0 { self.writer.settingsAck() }
  }

  /// Gives the server what has been written, in pieces.
  private mutating func deliver() throws {
    var bytes = self.writer.take()
    while bytes.readableBytes > 0 {
      let most = self.number(0..<2) == 0 ? bytes.readableBytes : self.number(1..<200)
      guard let piece = bytes.readSlice(length: min(bytes.readableBytes, most)) else { return }
      self.connection.received(piece)
      do {
        while let event = try self.connection.next(at: self.now) { try self.handle(event) }
      } catch let error as HTTP2ConnectionError {
        throw Fault("the connection was ended: \(error.reason)")
      }
    }
  }

  private mutating func handle(_ event: HTTP2Connection.Event) throws {
    switch event {
    case .request(let key, _, _):
      guard let stream = self.streams[key.id] else { return }
      self.streams[key.id] = Stream(
        key: key,
        window: stream.window,
        sendWindow: stream.sendWindow,
        settings: stream.settings,
        offset: stream.offset,
        hasSentEnd: stream.hasSentEnd
      )
    case .data(let key, _, let length, let isEnd):
      self.unconfirmed += length
      self.streams[key.id]?.unconfirmed += length
      if self.number(0..<2) == 0 { self.confirm(key, isEnd: isEnd) }
    case .reset(let key, _, let isByPeer):
      try check(isByPeer && self.reset.contains(key.id), "stream \(key.id) was reset")
    case .refused:
      // Those that the client has reset, or that have ended, may not have been heard of yet.
      throw Fault("a stream was refused")
    case .trailers, .settings, .ping, .pingAnswer:
      return
    }
  }

  /// Lets the client send as much again as has been read.
  private mutating func confirm(_ key: StreamKey, isEnd: Bool) {
    if self.unconfirmed > 0 { self.connection.openWindow(by: self.unconfirmed) }
    self.unconfirmed = 0
    guard let count = self.streams[key.id]?.unconfirmed, count > 0, !isEnd else { return }
    self.connection.openWindow(key, by: count)
    self.streams[key.id]?.unconfirmed = 0
  }

  // MARK: The server

  /// A stream that the server has heard of.
  private mutating func served() -> Stream? {
    guard let stream = self.anyStream(), stream.key.place >= 0, !stream.hasEnded else { return nil }
    return stream
  }

  private static let repeated = [
    HeaderField("x-one", "1", isRepeated: true), HeaderField("x-two", "22", isRepeated: true),
    HeaderField("content-type", "application/grpc", isRepeated: true),
  ]

  private mutating func list() -> HeaderList {
    var list = HeaderList([HeaderField(":status", self.number(0..<3) == 0 ? "404" : "200")])
    for field in Self.repeated where self.number(0..<2) == 0 { list.append(field) }
    let length = self.number(0..<50) == 0 ? self.number(16_000..<36_000) : self.number(0..<40)
    list.append("x-value", String(repeating: "\u{7F}", count: length))
    return list
  }

  private mutating func serverHeaders() throws {
    guard let stream = self.served(), stream.lists.isEmpty else { return }
    let list = self.list()
    self.streams[stream.key.id]?.lists.append(Self.headers(list))
    self.connection.sendHeaders(list, on: stream.key)
    if self.connection.isWaiting(stream.key) {
      self.streams[stream.key.id]?.hasUntoldMessages = true
    }
  }

  private static func headers(_ list: HeaderList) -> HPACKHeaders {
    HPACKHeaders(list.fields.map { ($0.name, $0.value) })
  }

  private mutating func serverData() throws {
    guard let stream = self.served(), !stream.lists.isEmpty else { return }
    let length = min(self.size(), Self.largest - stream.sent)
    guard length >= 0,
      let bytes = Self.content.getSlice(at: stream.offset + stream.sent, length: length)
    else { return }
    self.streams[stream.key.id]?.sent += length
    self.streams[stream.key.id]?.hasUntoldMessages = true
    self.connection.sendData(bytes, on: stream.key)
  }

  private mutating func serverEnd() throws {
    guard let stream = self.served() else { return }
    self.end(stream)
  }

  private mutating func end(_ stream: Stream) {
    let list = self.list()
    self.streams[stream.key.id]?.lists.append(Self.headers(list))
    self.streams[stream.key.id]?.hasEnded = true
    self.connection.sendEnd(list, on: stream.key)
  }

  private mutating func serverReset() {
    guard self.number(0..<3) == 0, let stream = self.anyStream(), stream.key.place >= 0 else {
      return
    }
    self.connection.reset(stream.key, .cancel)
    self.forget(stream.key.id)
  }

  /// What the server is told of what it has sent.
  private mutating func progress() throws {
    for stream in self.streams.values
    where stream.key.place >= 0 && self.connection.streams.holds(stream.key) {
      let found = self.connection.streams[stream.key.place]
      try check(found.waiting == found.queue.reduce(0) { $0 + $1.size }, "a wrong count of bytes")
    }
    for progress in self.connection.takeProgress() {
      switch progress {
      case .outputLeft(let key):
        guard let stream = self.streams[key.id] else { continue }
        try check(stream.key == key && stream.hasUntoldMessages, "messages that left twice")
        try check(self.connection.streams[key.place].queue.isEmpty, "messages that have not left")
        self.streams[key.id]?.hasUntoldMessages = false
      case .partLeft(let key):
        guard let stream = self.streams[key.id] else { continue }
        try check(stream.key == key && !stream.lists.isEmpty, "a part of nothing")
      case .endLeft(let key):
        guard let stream = self.streams[key.id] else { continue }
        try check(stream.key == key && stream.hasEnded && !stream.hasToldEnd, "a strange end")
        self.streams[key.id]?.hasToldEnd = true
      case .closed(let key):
        try check(self.closed.insert(key.id).inserted, "stream \(key.id) has closed twice")
        guard let stream = self.streams[key.id] else { continue }
        try check(stream.hasEnded && stream.hasSentEnd, "a stream closed that has not ended")
      }
    }
  }

  // MARK: The client

  /// Has the client read all that there is for it.
  private mutating func drain() throws {
    let (pieces, last) = self.connection.takeOutput()
    for piece in pieces + (last.map { [$0] } ?? []) { self.reader.append(piece) }
    try self.checkSizes(pieces + (last.map { [$0] } ?? []))
    while let frame = try self.reader.next() { try self.read(frame) }
  }

  /// No frame may be larger than the client's SETTINGS_MAX_FRAME_SIZE as of the acknowledgement before it.
  private mutating func checkSizes(_ pieces: [ByteBuffer]) throws {
    var bytes = ByteBuffer()
    for piece in pieces { bytes.writeImmutableBuffer(piece) }
    let frames = WireFrame.split(bytes)
    try check(
      !frames.isEmpty || bytes.readableBytes == 0,
      "output that is not made of whole frames"
    )
    for frame in frames {
      if frame.type == FrameKind.settings, frame.flags & Flag.ack != 0 {
        try check(!self.pending.isEmpty, "an acknowledgement of nothing")
        let (change, frameSize) = self.pending.removeFirst()
        self.frameSize = frameSize
        self.acknowledged += 1
        self.changes.append(change)
      }
      try check(frame.length <= self.frameSize, "a frame of \(frame.length) bytes")
    }
  }

  /// The changes of windows by SETTINGS whose acknowledgement is about to be read.
  private var changes: [Int] = []
  private var readAcknowledgements = 0

  private mutating func read(_ frame: Frame) throws {
    switch frame {
    case .settings(_, let isAck):
      guard isAck else { return }
      let change = self.changes.removeFirst()
      self.readAcknowledgements += 1
      for id in self.streams.keys {
        guard let stream = self.streams[id], stream.settings < self.readAcknowledgements else {
          continue
        }
        self.streams[id]?.window += change
      }
    case .windowUpdate(let id, let increment):
      if id == 0 { self.sendWindow += increment } else { self.streams[id]?.sendWindow += increment }
    case .headers(let id, let list, let isEnd):
      guard var stream = self.streams[id] else {
        return try check(self.reset.contains(id), "headers for stream \(id)")
      }
      try check(stream.receivedLists < stream.lists.count, "headers that were not sent")
      try check(list == stream.lists[stream.receivedLists], "headers that differ")
      try check(!stream.hasReceivedEnd, "headers behind the end")
      stream.receivedLists += 1
      if isEnd {
        try check(stream.hasEnded && stream.received == stream.sent, "an end that comes early")
        try check(stream.receivedLists == stream.lists.count, "an end without headers")
        stream.hasReceivedEnd = true
      }
      self.streams[id] = stream
    case .data(let id, let bytes, let isEnd):
      self.window -= bytes.readableBytes
      try check(self.window >= 0, "DATA past the connection's window")
      guard var stream = self.streams[id] else {
        return try check(self.reset.contains(id), "DATA for stream \(id)")
      }
      try check(!isEnd && !stream.hasReceivedEnd, "DATA that ends, or comes behind the end")
      stream.window -= bytes.readableBytes
      try check(stream.window >= 0 || bytes.readableBytes == 0, "DATA past the stream's window")
      let expected = Self.content.getSlice(
        at: stream.offset + stream.received,
        length: bytes.readableBytes
      )
      stream.received += bytes.readableBytes
      try check(stream.received <= stream.sent && bytes == expected, "DATA that differs")
      self.streams[id] = stream
    case .reset(let id, let code):
      try check(self.reset.contains(id) && code == ErrorCode.cancel, "stream \(id) was reset")
    case .ping(_, let isAck):
      try check(isAck, "a ping")
    case .goAway, .other:
      throw Fault("\(frame)")
    }
  }

  // MARK: The end

  /// Ends everything, opens all windows, and looks at what is left.
  mutating func finish() throws {
    try self.deliver()
    let opensBySettings = self.number(0..<2) == 0
    if opensBySettings {
      self.initialWindow += 1 << 22
      self.pending.append((1 << 22, self.pending.last?.frameSize ?? self.frameSize))
      self.sentSettings += 1
      self.writer.settings([(4, UInt32(self.initialWindow))])
    }
    for id in self.streams.keys.sorted() {
      if let stream = self.streams[id], !stream.hasEnded { self.end(stream) }
      if self.streams[id]?.hasSentEnd == false {
        self.writer.data(ByteBuffer(), on: id, isEnd: true)
        self.streams[id]?.hasSentEnd = true
      }
      if opensBySettings { continue }
      self.streams[id]?.window += 1 << 22
      self.writer.windowUpdate(id, increment: 1 << 22)
    }
    self.window += 1 << 24
    self.writer.windowUpdate(0, increment: 1 << 24)
    self.connection.isWritable = true
    try self.deliver()
    for _ in 0..<100 {
      self.connection.sendWaiting()
      let hasOutput = self.connection.hasOutput
      try self.drain()
      try self.progress()
      if !hasOutput { break }
    }
    for (id, stream) in self.streams {
      try check(
        stream.hasReceivedEnd && stream.received == stream.sent,
        "stream \(id) is not whole"
      )
      try check(stream.receivedLists == stream.lists.count, "headers of \(id) are missing")
      try check(self.closed.contains(id), "stream \(id) has not closed")
    }
    try check(self.connection.openStreams == 0, "streams are left")
    try check(!self.connection.hasOutput && !self.connection.hasReadyStreams, "output is left")
    try check(self.connection.ready.isEmpty && self.connection.starved.isEmpty, "turns are left")
    try check(self.connection.nextProgress() == nil, "progress is left")
    try check(self.pending.isEmpty && self.changes.isEmpty, "SETTINGS are not acknowledged")
  }
}
