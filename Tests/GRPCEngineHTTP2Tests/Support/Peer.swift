import GRPCEngineHTTP2
import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

// Both modules have these: here they are the client's.
typealias FrameKind = GRPCEngineTesting.FrameType
typealias Flag = GRPCEngineTesting.FrameFlag
typealias ClientReader = GRPCEngineTesting.FrameReader

/// What the connection told its user, in a form that can be compared.
enum Told: Equatable {
  case request(Int, HeaderList, isEnd: Bool)
  case data(Int, String, window: Int, isEnd: Bool)
  case trailers(Int, HeaderList)
  case reset(Int, UInt32, isByPeer: Bool)
  case refused, settings, ping
  case pingAnswer(UInt64)

  init(_ event: HTTP2Connection.Event) {
    self =
      switch event {
      case .request(let key, let block, let isEnd): .request(key.id, block.list, isEnd: isEnd)
      case .data(let key, let bytes, let length, let isEnd):
        .data(key.id, String(buffer: bytes), window: length, isEnd: isEnd)
      case .trailers(let key, let block): .trailers(key.id, block.list)
      case .reset(let key, let code, let isByPeer):
        .reset(key.id, code.rawValue, isByPeer: isByPeer)
      case .refused: .refused
      case .settings: .settings
      case .ping: .ping
      case .pingAnswer(let data): .pingAnswer(data)
      }
  }

  /// Joins the pieces in which DATA came, which depend on how the bytes were cut.
  static func joined(_ events: [Told]) -> [Told] {
    events.reduce(into: []) { joined, event in
      if case .data(let id, let text, let window, let isEnd) = event,
        case .data(id, let before, let windowBefore, false)? = joined.last
      {
        joined[joined.count - 1] =
          .data(id, before + text, window: windowBefore + window, isEnd: isEnd)
      } else {
        joined.append(event)
      }
    }
  }
}

/// The client's end of a connection without a socket, and a user of the server's end that only listens.
final class Peer {
  var connection: HTTP2Connection
  var writer = FrameWriter()
  private var reader = ClientReader()
  /// What came of what was sent last.
  private(set) var events: [HTTP2Connection.Event] = []
  private(set) var frames: [Frame] = []
  /// What ended the connection.
  private(set) var error: HTTP2ConnectionError?
  var now = NIODeadline.uptimeNanoseconds(1)
  private var keys: [Int: StreamKey] = [:]

  static let request = FrameWriter.request("/a/b")

  /// A connection with which nothing has happened yet, but that the server's SETTINGS have been read.
  init(bare settings: HTTP2Settings) throws {
    self.connection = HTTP2Connection(settings)
    try self.read()
  }

  /// A connection on which both sides know each other's settings.
  convenience init(_ settings: HTTP2Settings = HTTP2Settings(), _ own: [(UInt16, UInt32)] = [])
    throws
  {
    try self.init(bare: settings)
    try self.send { writer in
      writer.preface()
      writer.settings(own)
      writer.settingsAck()
    }
    try #require(self.told == [.settings])
    try #require(self.frames.count == 1)
  }

  var told: [Told] { Told.joined(self.events.map { Told($0) }) }

  /// Sends what `write` writes, at once or in pieces of so many bytes, and reads what comes back.
  func send(pieces: Int = .max, _ write: (inout FrameWriter) -> Void) throws {
    write(&self.writer)
    try self.send(self.writer.take(), pieces: pieces)
  }

  func send(_ bytes: ByteBuffer, pieces: Int = .max) throws {
    var bytes = bytes
    self.events = []
    while self.error == nil,
      let piece = bytes.readSlice(length: min(pieces, bytes.readableBytes)), piece.readableBytes > 0
    {
      self.connection.received(piece)
      do throws(HTTP2ConnectionError) {
        while let event = try self.connection.next(at: self.now) {
          if case .request(let key, _, _) = event { self.keys[key.id] = key }
          self.events.append(event)
        }
      } catch {
        self.error = error
      }
    }
    try self.read()
  }

  /// Reads all that the server sends now.
  func read() throws {
    self.connection.sendWaiting()
    let (pieces, last) = self.connection.takeOutput()
    for piece in pieces { self.reader.append(piece) }
    if let last { self.reader.append(last) }
    self.frames = []
    while let frame = try self.reader.next() { self.frames.append(frame) }
  }

  /// Has the server do something, and reads what comes of it.
  func serve(_ body: (inout HTTP2Connection) -> Void) throws {
    body(&self.connection)
    try self.read()
  }

  func key(_ id: Int) throws -> StreamKey { try #require(self.keys[id]) }

  /// Opens a stream.
  @discardableResult
  func open(_ id: Int, isEnd: Bool = false) throws -> StreamKey {
    try self.send { $0.headers(Self.request, on: id, isEnd: isEnd) }
    return try self.key(id)
  }

  /// The streams that were reset by what was sent last, with their codes.
  var resets: [Int: UInt32] {
    self.frames.reduce(into: [:]) { resets, frame in
      if case .reset(let stream, let code) = frame { resets[stream] = code }
    }
  }

  /// How many bytes of DATA came for a stream.
  func received(on stream: Int) -> Int {
    self.frames.reduce(0) { sum, frame in
      if case .data(stream, let payload, _) = frame { sum + payload.readableBytes } else { sum }
    }
  }

  /// Whether the connection still does what it is asked.
  func isAlive() throws -> Bool {
    try self.send { $0.ping(0xA11E) }
    guard self.error == nil, self.told == [.ping] else { return false }
    return self.frames.contains { if case .ping(0xA11E, isAck: true) = $0 { true } else { false } }
  }
}

extension FrameWriter {
  /// A frame of bytes.
  mutating func frame(_ type: UInt8, _ flags: UInt8 = 0, on stream: Int, _ payload: [UInt8] = []) {
    self.frame(
      RawFrame(type: type, flags: flags, stream: stream, payload: ByteBuffer(bytes: payload))
    )
  }

  /// HEADERS of one frame with what may stand before and behind its block.
  mutating func headers(
    _ list: HPACKHeaders,
    on stream: Int,
    flags: UInt8,
    before: [UInt8] = [],
    behind: [UInt8] = []
  ) {
    let block = Array(self.block(list).readableBytesView)
    self.frame(FrameKind.headers, flags | Flag.endHeaders, on: stream, before + block + behind)
  }
}

extension Flag {
  static let priority: UInt8 = 0x20
}

/// Something that a client may do wrong, and what it gets for it.
struct Rule: Sendable, CustomTestStringConvertible {
  let section: String
  let what: String
  let code: HTTP2ErrorCode
  let write: @Sendable (inout FrameWriter) -> Void

  init(
    _ section: String,
    _ what: String,
    _ code: HTTP2ErrorCode,
    _ write: @escaping @Sendable (inout FrameWriter) -> Void
  ) {
    self.section = section
    self.what = what
    self.code = code
    self.write = write
  }

  var testDescription: String { "\(self.section) \(self.what)" }

  /// Asks that the rule's frames end the connection, however they are cut.
  func expectConnectionError(_ makePeer: @autoclosure () throws -> Peer) throws {
    for pieces in [Int.max, 1] {
      let peer = try makePeer()
      try peer.send(pieces: pieces, self.write)
      #expect(peer.error?.code == self.code, "\(peer.error?.reason ?? "borne")")
    }
  }
}

extension HTTP2Connection {
  /// All that has become of what was sent.
  mutating func takeProgress() -> [Progress] {
    var all: [Progress] = []
    while let progress = self.nextProgress() { all.append(progress) }
    return all
  }
}

extension OutgoingData {
  init(_ bytes: ByteBuffer) {
    self.init(capacity: bytes.readableBytes)
    bytes.withUnsafeReadableBytes { self.write($0) }
  }
}

extension HTTP2Connection {
  mutating func sendData(_ bytes: ByteBuffer, on key: StreamKey) {
    self.sendData(OutgoingData(bytes), on: key)
  }
}
