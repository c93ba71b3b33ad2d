internal import GRPCEngineWire
internal import Glibc
package import NIOCore
package import NIOHPACK

/// A gRPC client made of raw frames, on the thread of its test.
///
/// It keeps the rules of HTTP/2 as long as a test does not break them, and it shows everything that
/// the server sends.
package final class TestClient {
  package struct GoAway: Hashable, Sendable {
    package let last: Int
    package let code: UInt32
    package let debug: String
  }

  /// The server closed the connection while the test waited for something else.
  package struct ConnectionClosed: Error {
    package let what: String
    package let goAways: [GoAway]
  }

  package let connection: any ByteConnection
  package var writer = FrameWriter()
  private var reader = FrameReader()

  package private(set) var answers: [Int: Answer] = [:]
  package private(set) var settings: [UInt16: UInt32]?
  package private(set) var goAways: [GoAway] = []
  /// Pings of the server, and its answers to ours.
  package private(set) var pings: [UInt64] = []
  package private(set) var pingAcks: [UInt64] = []
  package private(set) var settingsAcks = 0
  package private(set) var isClosed = false

  /// Whether pings are answered. A peer that does not is half-open.
  package var answersPings = true
  /// Whether the server may send on as messages come in.
  package var grantsWindows = true
  /// Microseconds that a slow peer lets pass between two reads.
  package var readInterval: UInt32 = 0

  private var nextStream = 1
  private var sendWindow = 65_535
  private var sendWindows: [Int: Int] = [:]

  package init(_ connection: any ByteConnection) { self.connection = connection }

  // MARK: Out

  /// Sends whatever `write` writes.
  package func send(_ write: (inout FrameWriter) -> Void) {
    write(&self.writer)
    self.flush()
  }

  package func flush() {
    let bytes = self.writer.take()
    if bytes.readableBytes > 0 { self.connection.write(bytes) }
  }

  /// Opens the connection and waits for the server's settings.
  ///
  /// - Parameter settings: what this client announces, by the numbers of RFC 9113 section 6.5.2.
  package func handshake(_ settings: [(UInt16, UInt32)] = []) throws {
    self.send { writer in
      writer.preface()
      writer.settings(settings)
    }
    try self.wait("SETTINGS") { self.settings != nil && self.settingsAcks > 0 }
  }

  /// Opens a call; it goes out with the next flush.
  @discardableResult
  package func open(
    _ path: String,
    _ extra: HPACKHeaders = [:],
    isEnd: Bool = false
  ) -> Int {
    self.open(headers: FrameWriter.request(path, extra), isEnd: isEnd)
  }

  @discardableResult
  package func open(headers: HPACKHeaders, isEnd: Bool = false) -> Int {
    let stream = self.nextStream
    self.nextStream += 2
    self.answers[stream] = Answer()
    self.writer.headers(headers, on: stream, isEnd: isEnd)
    return stream
  }

  /// Sends a message as the server's windows allow it.
  package func message(
    _ bytes: [UInt8],
    on stream: Int,
    isEnd: Bool = false,
    isCompressed: Bool = false
  ) throws {
    try self.data(FrameWriter.message(bytes, isCompressed: isCompressed), on: stream, isEnd: isEnd)
  }

  /// Sends bytes as the server's windows allow it.
  package func data(_ bytes: ByteBuffer, on stream: Int, isEnd: Bool = false) throws {
    var rest = bytes
    repeat {
      let room = min(self.room(on: stream), 16_384)
      if room <= 0, rest.readableBytes > 0 {
        self.flush()
        try self.pump("a window to send in")
        if self.answers[stream]?.isEnded == true || self.answers[stream]?.reset != nil { return }
        continue
      }
      let part = rest.readSlice(length: min(room, rest.readableBytes)) ?? ByteBuffer()
      self.writer.data(part, on: stream, isEnd: isEnd && rest.readableBytes == 0)
      self.took(part.readableBytes, on: stream)
    } while rest.readableBytes > 0
    self.flush()
  }

  /// How much the server lets this client send on a stream.
  package func room(on stream: Int) -> Int {
    min(self.sendWindow, self.sendWindows[stream] ?? self.initialWindow)
  }

  /// Counts bytes that a test has written past `data`.
  package func took(_ length: Int, on stream: Int) {
    self.sendWindow -= length
    self.sendWindows[stream] = (self.sendWindows[stream] ?? self.initialWindow) - length
  }

  private var initialWindow: Int { self.settings?[4].map(Int.init) ?? 65_535 }

  // MARK: In

  /// Reads until `isTrue`.
  ///
  /// - Throws: `ConnectionClosed` when the server closes before, `TestTimeout`.
  package func wait(_ what: String, until isTrue: () -> Bool) throws {
    self.flush()
    while !isTrue() {
      if self.isClosed { throw ConnectionClosed(what: what, goAways: self.goAways) }
      try self.pump(what)
    }
  }

  /// Reads until the server has closed the connection.
  package func waitForClose() throws {
    self.flush()
    while !self.isClosed { try self.pump("the connection's end") }
  }

  /// Reads until a stream has ended, by its answer or a reset, and returns what came.
  package func answer(on stream: Int) throws -> Answer {
    try self.wait("the end of stream \(stream)") {
      self.answers[stream]?.isEnded == true || self.answers[stream]?.reset != nil
    }
    return self.answers[stream] ?? Answer()
  }

  /// A whole call with one message.
  package func unary(
    _ path: String,
    _ message: [UInt8] = [],
    _ extra: HPACKHeaders = [:]
  ) throws -> Answer {
    let stream = self.open(path, extra)
    try self.message(message, on: stream, isEnd: true)
    return try self.answer(on: stream)
  }

  /// Waits until the server has handled everything sent so far. Settings are acknowledged in their
  /// order, and unlike pings they are no reason to be strict.
  package func barrier() throws {
    let acks = self.settingsAcks
    self.send { $0.settings() }
    try self.wait("the settings' acknowledgement") { self.settingsAcks > acks }
  }

  private func pump(_ what: String) throws {
    if self.readInterval > 0 { usleep(self.readInterval) }
    guard let bytes = try self.connection.read(what) else {
      self.isClosed = true
      return
    }
    self.reader.append(bytes)
    while let frame = try self.reader.next() { try self.handle(frame) }
    self.flush()
  }

  private func handle(_ frame: Frame) throws {
    switch frame {
    case .data(let stream, let payload, let isEnd):
      try self.answers[stream]?.received(payload)
      if isEnd { self.answers[stream]?.isEnded = true }
      guard self.grantsWindows, payload.readableBytes > 0 else { return }
      self.writer.windowUpdate(0, increment: payload.readableBytes)
      if !isEnd { self.writer.windowUpdate(stream, increment: payload.readableBytes) }
    case .headers(let stream, let headers, let isEnd):
      if self.answers[stream]?.headers == nil {
        self.answers[stream]?.headers = headers
      } else {
        self.answers[stream]?.trailers = headers
      }
      if isEnd { self.answers[stream]?.isEnded = true }
    case .reset(let stream, let code):
      self.answers[stream]?.reset = code
    case .settings(let values, let isAck):
      if isAck {
        self.settingsAcks += 1
      } else {
        let window = self.initialWindow
        self.settings = (self.settings ?? [:]).merging(values) { $1 }
        let change = self.initialWindow - window
        if change != 0 { self.sendWindows = self.sendWindows.mapValues { $0 + change } }
        self.writer.settingsAck()
      }
    case .ping(let data, let isAck):
      if isAck {
        self.pingAcks.append(data)
      } else {
        self.pings.append(data)
        if self.answersPings { self.writer.ping(data, isAck: true) }
      }
    case .goAway(let last, let code, let debug):
      self.goAways.append(GoAway(last: last, code: code, debug: debug))
    case .windowUpdate(let stream, let increment):
      if stream == 0 {
        self.sendWindow += increment
      } else {
        self.answers[stream]?.granted += increment
        self.sendWindows[stream] = (self.sendWindows[stream] ?? self.initialWindow) + increment
      }
    case .other:
      break
    }
  }
}
