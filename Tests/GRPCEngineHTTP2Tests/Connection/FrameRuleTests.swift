import GRPCEngineHTTP2
import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

/// RFC 9113 sections 3.4, 4, 5.5, 6 and 7: what every frame must be, whatever its stream's state.
struct FrameRuleTests {
  // MARK: Section 3.4

  @Test("3.4: The server speaks first, with SETTINGS that are no acknowledgement")
  func serverPreface() throws {
    var settings = HTTP2Settings()
    settings.maxConcurrentStreams = 7
    settings.streamWindow = 1 << 20
    settings.maxFrameSize = 20_000
    let peer = try Peer(bare: settings)
    guard case .settings(let values, isAck: false)? = peer.frames.first else {
      Issue.record("\(peer.frames)")
      return
    }
    #expect(peer.frames.count == 1)
    #expect(values == [3: 7, 4: 1 << 20, 5: 20_000, 6: 16_384])
  }

  @Test("3.4: A preface with any byte wrong is no HTTP/2", arguments: 0..<24)
  func preface(index: Int) throws {
    var bytes = Array(FrameWriter.preface.utf8)
    bytes[index] ^= 1
    for pieces in [Int.max, 1] {
      let peer = try Peer(bare: HTTP2Settings())
      try peer.send(ByteBuffer(bytes: bytes), pieces: pieces)
      #expect(peer.error?.code == .protocolError)
    }
  }

  private static let firstFrames = [
    Rule("3.4", "PING", .protocolError) { $0.ping() },
    Rule("3.4", "HEADERS", .protocolError) { $0.headers(Peer.request, on: 1) },
    Rule("3.4", "an acknowledgement of SETTINGS", .protocolError) { $0.settingsAck() },
    Rule("3.4", "DATA", .protocolError) { $0.data(ByteBuffer(string: "a"), on: 1) },
    Rule("3.4", "WINDOW_UPDATE", .protocolError) { $0.windowUpdate(0, increment: 1) },
    Rule("3.4", "a frame of an unknown type", .protocolError) { $0.frame(0x42, on: 0) },
  ]

  @Test("3.4: The first frame must be SETTINGS", arguments: firstFrames)
  func firstFrame(rule: Rule) throws {
    let peer = try Peer(bare: HTTP2Settings())
    try peer.send { $0.preface() }
    #expect(peer.error == nil)
    try rule.expectConnectionError(peer)
  }

  @Test("3.4: SETTINGS may be empty, and calls may come before they are answered")
  func firstSettings() throws {
    for pieces in [Int.max, 1, 5] {
      let peer = try Peer(bare: HTTP2Settings())
      try peer.send(pieces: pieces) { writer in
        writer.preface()
        writer.settings()
        writer.headers(Peer.request, on: 1)
      }
      #expect(peer.told.count == 2)
      #expect(peer.told.first == .settings)
      #expect(try peer.isAlive())
    }
  }

  // MARK: Connection errors

  private static let connectionErrors = [
    Rule("4.2", "a frame above SETTINGS_MAX_FRAME_SIZE", .frameSizeError) {
      $0.frame(RawFrame(type: FrameKind.ping, stream: 0), length: 16_385)
    },
    Rule("4.2", "DATA above SETTINGS_MAX_FRAME_SIZE", .frameSizeError) {
      $0.data(ByteBuffer(repeating: 0, count: 16_385), on: 1)
    },
    Rule("4.2", "an unknown frame above SETTINGS_MAX_FRAME_SIZE", .frameSizeError) {
      $0.frame(RawFrame(type: 0x42, stream: 0), length: (1 << 24) - 1)
    },
    Rule("4.2", "padded DATA without its padding's length", .frameSizeError) {
      $0.frame(FrameKind.data, Flag.padded, on: 1)
    },
    Rule("4.2", "padded HEADERS without their padding's length", .frameSizeError) {
      $0.frame(FrameKind.headers, Flag.padded | Flag.endHeaders, on: 5)
    },
    Rule("4.2", "HEADERS of four bytes with a priority", .frameSizeError) {
      $0.frame(FrameKind.headers, Flag.priority | Flag.endHeaders, on: 5, [0, 0, 0, 0])
    },
    Rule("4.2", "padded HEADERS of five bytes with a priority", .frameSizeError) {
      let flags = Flag.padded | Flag.priority | Flag.endHeaders
      $0.frame(FrameKind.headers, flags, on: 5, [0, 0, 0, 0, 0])
    },
    Rule("4.3", "a header block that is no HPACK", .compressionError) {
      $0.frame(FrameKind.headers, Flag.endHeaders, on: 5, [0x80])
    },
    Rule("4.3", "a header block that ends amid a field", .compressionError) {
      $0.frame(FrameKind.headers, Flag.endHeaders, on: 5, [0x82, 0x04, 0x05, 0x2F])
    },
    Rule("4.3", "trailers that are no HPACK", .compressionError) {
      $0.frame(FrameKind.headers, Flag.endHeaders | Flag.endStream, on: 1, [0xFF, 0xFF])
    },
    Rule("4.3", "no HPACK on a stream that has ended", .compressionError) {
      $0.frame(FrameKind.headers, Flag.endHeaders | Flag.endStream, on: 3, [0xFF])
    },
    Rule("4.3", "a table larger than the server's", .compressionError) {
      $0.frame(FrameKind.headers, Flag.endHeaders, on: 5, [0x3F, 0xE2, 0x1F])
    },
    Rule("5.5", "an unknown frame amid a header block", .protocolError) { writer in
      writer.frame(FrameKind.headers, on: 5, [0x82])
      writer.frame(0x42, on: 5)
    },
    Rule("6.1", "DATA without a stream", .protocolError) {
      $0.data(ByteBuffer(string: "a"), on: 0)
    },
    Rule("6.1", "empty DATA without a stream", .protocolError) { $0.data(ByteBuffer(), on: 0) },
    Rule("6.1", "padded DATA without a stream", .protocolError) {
      $0.data(ByteBuffer(string: "a"), on: 0, padding: 3)
    },
    Rule("6.1", "DATA with as much padding as its frame is long", .protocolError) {
      $0.frame(FrameKind.data, Flag.padded, on: 1, [3, 0, 0])
    },
    Rule("6.1", "DATA with more padding than its frame is long", .protocolError) {
      $0.frame(FrameKind.data, Flag.padded, on: 1, [255, 0, 0])
    },
    Rule("6.1", "DATA with padding in an empty frame", .protocolError) {
      $0.frame(FrameKind.data, Flag.padded, on: 1, [1])
    },
    Rule("6.2", "HEADERS without a stream", .protocolError) { $0.headers(Peer.request, on: 0) },
    Rule("6.2", "HEADERS with more padding than their frame is long", .protocolError) {
      $0.frame(FrameKind.headers, Flag.padded | Flag.endHeaders, on: 5, [9, 0x82])
    },
    Rule("6.2", "HEADERS with padding that leaves no room for the priority", .protocolError) {
      let flags = Flag.padded | Flag.priority | Flag.endHeaders
      $0.frame(FrameKind.headers, flags, on: 5, [2, 0, 0, 0, 0, 16, 0x82])
    },
    Rule("6.3", "PRIORITY without a stream", .protocolError) {
      $0.frame(FrameKind.priority, on: 0, [0, 0, 0, 1, 16])
    },
    Rule("6.3", "PRIORITY of four bytes on a stream that is not open", .frameSizeError) {
      $0.frame(FrameKind.priority, on: 5, [0, 0, 0, 1])
    },
    Rule("6.4", "RST_STREAM without a stream", .protocolError) { $0.reset(0) },
    Rule("6.4", "RST_STREAM of three bytes", .frameSizeError) {
      $0.frame(FrameKind.reset, on: 1, [0, 0, 8])
    },
    Rule("6.4", "RST_STREAM of five bytes", .frameSizeError) {
      $0.frame(FrameKind.reset, on: 1, [0, 0, 0, 8, 0])
    },
    Rule("6.5", "SETTINGS on a stream", .protocolError) { $0.frame(FrameKind.settings, on: 1) },
    Rule("6.5", "an acknowledgement of SETTINGS on a stream", .protocolError) {
      $0.frame(FrameKind.settings, Flag.ack, on: 1)
    },
    Rule("6.5", "an acknowledgement with settings", .frameSizeError) {
      $0.frame(FrameKind.settings, Flag.ack, on: 0, [0, 4, 0, 0, 0, 1])
    },
    Rule("6.5", "SETTINGS of five bytes", .frameSizeError) {
      $0.frame(FrameKind.settings, on: 0, [0, 4, 0, 0, 0])
    },
    Rule("6.5", "SETTINGS of seven bytes", .frameSizeError) {
      $0.frame(FrameKind.settings, on: 0, [0, 4, 0, 0, 0, 1, 0])
    },
    Rule("6.6, 8.4", "PUSH_PROMISE", .protocolError) { writer in
      let block = Array(writer.block(Peer.request).readableBytesView)
      writer.frame(FrameKind.pushPromise, Flag.endHeaders, on: 1, [0, 0, 0, 2] + block)
    },
    Rule("6.7", "PING on a stream", .protocolError) {
      $0.frame(FrameKind.ping, on: 1, Array(repeating: 0, count: 8))
    },
    Rule("6.7", "PING of seven bytes", .frameSizeError) {
      $0.frame(FrameKind.ping, on: 0, Array(repeating: 0, count: 7))
    },
    Rule("6.7", "an answer to PING of nine bytes", .frameSizeError) {
      $0.frame(FrameKind.ping, Flag.ack, on: 0, Array(repeating: 0, count: 9))
    },
    Rule("6.8", "GOAWAY on a stream", .protocolError) {
      $0.frame(FrameKind.goAway, on: 1, Array(repeating: 0, count: 8))
    },
    Rule("6.8", "GOAWAY of seven bytes", .frameSizeError) {
      $0.frame(FrameKind.goAway, on: 0, Array(repeating: 0, count: 7))
    },
    Rule("6.9", "WINDOW_UPDATE of three bytes", .frameSizeError) {
      $0.frame(FrameKind.windowUpdate, on: 0, [0, 0, 1])
    },
    Rule("6.9", "WINDOW_UPDATE of five bytes on a stream", .frameSizeError) {
      $0.frame(FrameKind.windowUpdate, on: 1, [0, 0, 0, 1, 0])
    },
    Rule("6.9", "WINDOW_UPDATE of nothing on the connection", .protocolError) {
      $0.windowUpdate(0, increment: 0)
    },
    Rule("6.9", "WINDOW_UPDATE of nothing but the reserved bit", .protocolError) {
      $0.windowUpdate(0, increment: 0x8000_0000)
    },
    Rule("6.10", "CONTINUATION without HEADERS", .protocolError) {
      $0.frame(FrameKind.continuation, Flag.endHeaders, on: 1, [0x82])
    },
    Rule("6.10", "CONTINUATION without a stream", .protocolError) {
      $0.frame(FrameKind.continuation, Flag.endHeaders, on: 0, [0x82])
    },
    Rule("6.10", "CONTINUATION after END_HEADERS", .protocolError) { writer in
      writer.headers(Peer.request, on: 5)
      writer.frame(FrameKind.continuation, Flag.endHeaders, on: 5, [0x82])
    },
    Rule("6.10", "CONTINUATION after the last CONTINUATION", .protocolError) { writer in
      writer.headers(Peer.request, on: 5, fragment: 8)
      writer.frame(FrameKind.continuation, Flag.endHeaders, on: 5)
    },
    Rule("6.10", "CONTINUATION on another stream", .protocolError) { writer in
      writer.frame(FrameKind.headers, on: 5, [0x82])
      writer.frame(FrameKind.continuation, Flag.endHeaders, on: 1, [0x82])
    },
    Rule("6.10", "CONTINUATION without a stream amid a header block", .protocolError) { writer in
      writer.frame(FrameKind.headers, on: 5, [0x82])
      writer.frame(FrameKind.continuation, Flag.endHeaders, on: 0, [0x82])
    },
  ]

  /// Stream 1 is open, and 3 has ended on both sides.
  private static func begun() throws -> Peer {
    let peer = try Peer()
    try peer.open(1)
    let key = try peer.open(3, isEnd: true)
    try peer.serve { $0.sendEnd([":status": "200"], on: key) }
    return peer
  }

  @Test("What breaks the rules of frames ends the connection", arguments: connectionErrors)
  func connectionError(rule: Rule) throws { try rule.expectConnectionError(Self.begun()) }

  @Test("6.2, 6.10: Every frame but its CONTINUATION breaks a header block", arguments: 0...9)
  func interruptedBlock(type: UInt8) throws {
    guard type != FrameKind.continuation else { return }
    for stream in [0, 1, 5] {
      let rule = Rule("6.10", "type \(type)", .protocolError) { writer in
        writer.frame(FrameKind.headers, Flag.endStream, on: 5, [0x82])
        writer.frame(type, on: stream, Array(repeating: 0, count: 8))
      }
      try rule.expectConnectionError(Self.begun())
    }
  }

  @Test("5.4.1: GOAWAY names the last stream and the reason")
  func goAway() throws {
    let peer = try Self.begun()
    try peer.send { $0.windowUpdate(0, increment: 0) }
    let error = try #require(peer.error)
    try peer.serve { $0.sendGoAway(error.code, error.reason) }
    guard case .goAway(let last, let code, let debug)? = peer.frames.last else {
      Issue.record("\(peer.frames)")
      return
    }
    #expect(last == 3)
    #expect(code == ErrorCode.protocolError)
    #expect(debug == error.reason)
  }

  // MARK: What must be borne

  private static let borne = [
    Rule("4.1, 5.5", "a frame of an unknown type", .noError) { writer in
      for stream in [0, 1, 3, 7, 8] { writer.frame(0x42, 0xFF, on: stream, [1, 2, 3]) }
    },
    Rule("4.1", "reserved bits of streams", .noError) { writer in
      writer.frame(FrameKind.priority, on: 0x8000_0001, [0, 0, 0, 1, 16])
      writer.frame(FrameKind.windowUpdate, on: 0x8000_0000, [0, 0, 0, 1])
    },
    Rule("4.1", "flags that a frame does not have", .noError) { writer in
      writer.frame(FrameKind.windowUpdate, 0xFF, on: 0, [0, 0, 0, 1])
      writer.frame(FrameKind.priority, 0xFF, on: 1, [0, 0, 0, 1, 16])
      writer.frame(FrameKind.goAway, 0xFF, on: 0, Array(repeating: 0, count: 8))
    },
    Rule("5.1", "PRIORITY on streams in every state", .noError) { writer in
      for stream in [1, 2, 3, 5, 0x7FFF_FFFF] {
        writer.frame(FrameKind.priority, on: stream, [0, 0, 0, 1, 16])
      }
    },
    Rule("5.3.2", "PRIORITY of a stream that depends on itself", .noError) {
      $0.frame(FrameKind.priority, on: 1, [0, 0, 0, 1, 16])
    },
    Rule("6.5", "a second acknowledgement of SETTINGS", .noError) { $0.settingsAck() },
    Rule("6.8", "GOAWAY, with debug data and a code that nobody knows", .noError) {
      $0.frame(
        FrameKind.goAway,
        on: 0,
        [0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF] + Array("bye".utf8)
      )
    },
    Rule("6.9", "the reserved bit of WINDOW_UPDATE", .noError) {
      $0.frame(FrameKind.windowUpdate, on: 0, [0x80, 0, 0, 1])
    },
  ]

  @Test("What has no meaning here is ignored, and nothing said of it", arguments: borne)
  func ignored(rule: Rule) throws {
    for pieces in [Int.max, 1] {
      let peer = try Self.begun()
      try peer.send(pieces: pieces, rule.write)
      #expect(peer.error == nil)
      #expect(peer.told == [])
      #expect(peer.frames.isEmpty)
      #expect(try peer.isAlive())
    }
  }

  @Test("4.2: A frame of SETTINGS_MAX_FRAME_SIZE is taken", arguments: [16_384, 20_000, 1 << 20])
  func largestFrame(size: Int) throws {
    var settings = HTTP2Settings()
    (settings.maxFrameSize, settings.streamWindow) = (size, 1 << 21)
    for pieces in [Int.max, 4000] {
      let peer = try Peer(settings)
      let key = try peer.open(1)
      try peer.serve { $0.openWindow(by: 1 << 21) }
      let text = String(repeating: "x", count: size)
      try peer.send(pieces: pieces) { $0.data(ByteBuffer(string: text), on: 1) }
      #expect(peer.told == [.data(1, text, window: size, isEnd: false)])
      try peer.serve { $0.openWindow(key, by: 1) }
      try peer.send(pieces: pieces) { $0.data(ByteBuffer(repeating: 0, count: size + 1), on: 1) }
      #expect(peer.error?.code == .frameSizeError)
    }
  }

  @Test("6.1, 6.2: Padding is no content, but counts for windows", arguments: [0, 1, 100, 255])
  func padding(length: Int) throws {
    let peer = try Self.begun()
    let before = peer.connection.receiveWindow
    let padding = UInt8(length)
    try peer.send { $0.data(ByteBuffer(string: "abc"), on: 1, padding: padding) }
    #expect(peer.told == [.data(1, "abc", window: length + 4, isEnd: false)])
    #expect(before - peer.connection.receiveWindow == length + 4)
    try peer.send { writer in
      writer.headers(
        Peer.request,
        on: 5,
        flags: Flag.padded | Flag.priority,
        before: [padding, 0x80, 0, 0, 1, 255],
        behind: Array(repeating: 0, count: length)
      )
    }
    guard case .request(5, let list, isEnd: false)? = peer.told.first else {
      Issue.record("\(peer.told)")
      return
    }
    #expect(list.fields.map(\.name) == Peer.request.map(\.name))
  }

  @Test("6.7: A ping is answered with what it brought, and an answer is not answered")
  func ping() throws {
    let peer = try Peer()
    try peer.send { writer in
      writer.frame(FrameKind.ping, 0xFE, on: 0, [1, 2, 3, 4, 5, 6, 7, 8])
      writer.ping(99, isAck: true)
    }
    #expect(peer.told == [.ping, .pingAnswer(99)])
    #expect(peer.frames.count == 1)
    guard case .ping(0x0102_0304_0506_0708, isAck: true)? = peer.frames.first else {
      Issue.record("\(peer.frames)")
      return
    }
  }

  @Test("6.8: No GOAWAY names a later stream than the one before it")
  func goAwayNeverRises() throws {
    let peer = try Peer()
    try peer.open(5)
    var last: [Int] = []
    func note(_ frames: [Frame]) {
      for case .goAway(let stream, _, _) in frames { last.append(stream) }
    }
    try peer.serve { $0.sendGoAwayWarning() }
    note(peer.frames)
    try peer.send { $0.headers(Peer.request, on: 7) }
    #expect(peer.told.count == 1, "streams may come until the second one")
    try peer.serve { $0.sendGoAway(.noError) }
    note(peer.frames)
    try peer.send { writer in
      writer.headers(Peer.request, on: 9)
      writer.data(ByteBuffer(string: "abc"), on: 9)
      writer.windowUpdate(9, increment: 1)
      writer.headers(["grpc-status": "0"], on: 9, isEnd: true)
      writer.headers(Peer.request, on: 9)
      writer.reset(9)
    }
    #expect(peer.told == [] && peer.error == nil, "what comes later is ignored")
    #expect(peer.connection.receiveWindow == 65_532, "and counts for the connection's window")
    try peer.serve { $0.sendGoAway(.noError) }
    note(peer.frames)
    try peer.serve { $0.sendGoAwayWarning() }
    note(peer.frames)
    #expect(last == [0x7FFF_FFFF, 7, 7, 7])
  }

  @Test("6.10: A header block may be cut anywhere", arguments: [1, 2, 7, 40])
  func continuations(fragment: Int) throws {
    for pieces in [Int.max, 1, 3] {
      let peer = try Peer()
      try peer.send(pieces: pieces) { writer in
        writer.headers(["a": "b", "c": "d"], on: 1, isEnd: true, fragment: fragment)
      }
      #expect(peer.told == [.request(1, ["a": "b", "c": "d"], isEnd: true)])
    }
  }

  @Test("6.10: The parts of a header block may be empty")
  func emptyContinuations() throws {
    let peer = try Peer()
    try peer.send { writer in
      writer.frame(FrameKind.headers, on: 1)
      writer.frame(FrameKind.continuation, on: 1)
      writer.frame(FrameKind.continuation, on: 1, [0x82])
      writer.frame(FrameKind.continuation, Flag.endHeaders | Flag.endStream, on: 1)
    }
    // END_STREAM is a flag of HEADERS, and CONTINUATION has none but END_HEADERS.
    #expect(peer.told == [.request(1, [":method": "GET"], isEnd: false)])
  }

  @Test("7: A code that nobody knows is no special error", arguments: [14, 0xFFFF_FFFF as UInt32])
  func unknownCode(code: UInt32) throws {
    let peer = try Self.begun()
    try peer.send { $0.reset(1, code: code) }
    #expect(peer.told == [.reset(1, code, isByPeer: true)])
    #expect(peer.frames.isEmpty, "5.4.2: RST_STREAM is not answered with RST_STREAM")
    #expect(try peer.isAlive())
  }
}
