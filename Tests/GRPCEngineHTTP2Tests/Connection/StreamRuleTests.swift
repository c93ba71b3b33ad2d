import GRPCEngineHTTP2
import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

/// RFC 9113 sections 5.1, 5.3, 5.4, 6.4, 8.1 and 8.7: what may come in which state of a stream.
struct StreamRuleTests {
  /// Stream 1 is open, 3 half-closed by the client, 5 half-closed by the server, 7 reset by the server, 9
  /// reset by the client, 13 ended on both sides; 11 has been passed over.
  private static func begun() throws -> Peer {
    let peer = try Peer()
    try peer.open(1)
    try peer.open(3, isEnd: true)
    let ended = try peer.open(5)
    try peer.serve { $0.sendEnd([":status": "200"], on: ended) }
    let reset = try peer.open(7)
    try peer.serve { $0.reset(reset, .cancel) }
    try peer.open(9)
    try peer.send { $0.reset(9) }
    let closed = try peer.open(13, isEnd: true)
    try peer.serve { $0.sendEnd([":status": "200"], on: closed) }
    _ = peer.connection.takeProgress()
    try #require(peer.connection.openStreams == 3)
    return peer
  }

  private static let trailers: HPACKHeaders = ["a": "b"]

  // MARK: Section 5.1

  private static let connectionErrors = [
    Rule("5.1 idle", "DATA", .protocolError) { $0.data(ByteBuffer(string: "a"), on: 15) },
    Rule("5.1 idle", "empty DATA", .protocolError) { $0.data(ByteBuffer(), on: 15) },
    Rule("5.1 idle", "padded DATA", .protocolError) {
      $0.data(ByteBuffer(), on: 15, padding: 1)
    },
    Rule("5.1 idle", "RST_STREAM", .protocolError) { $0.reset(15) },
    Rule("5.1 idle", "WINDOW_UPDATE", .protocolError) { $0.windowUpdate(15, increment: 1) },
    Rule("5.1 idle", "WINDOW_UPDATE of nothing", .protocolError) {
      $0.windowUpdate(15, increment: 0)
    },
    Rule("5.1 idle", "DATA on a stream of the server's", .protocolError) {
      $0.data(ByteBuffer(string: "a"), on: 2)
    },
    Rule("5.1 idle", "RST_STREAM of a stream of the server's", .protocolError) { $0.reset(2) },
    Rule("5.1 idle", "WINDOW_UPDATE of a stream of the server's", .protocolError) {
      $0.windowUpdate(2, increment: 1)
    },
    Rule("5.1.1", "a request with an even number", .protocolError) {
      $0.headers(Peer.request, on: 16)
    },
    Rule("5.1.1", "a request on a stream that was passed over", .protocolError) {
      $0.headers(Peer.request, on: 11)
    },
    Rule("5.1.1", "a request on a stream that has ended", .protocolError) {
      $0.headers(Peer.request, on: 13, isEnd: true)
    },
  ]

  @Test("Frames on streams that nobody has opened end the connection", arguments: connectionErrors)
  func connectionError(rule: Rule) throws { try rule.expectConnectionError(Self.begun()) }

  private static let streamErrors: [(Int, Rule)] = [
    (3, Rule("5.1 half-closed", "DATA", .streamClosed) { $0.data(ByteBuffer(string: "a"), on: 3) }),
    (3, Rule("5.1 half-closed", "empty DATA", .streamClosed) { $0.data(ByteBuffer(), on: 3) }),
    (
      3,
      Rule("5.1 half-closed", "padded DATA that ends", .streamClosed) {
        $0.data(ByteBuffer(), on: 3, isEnd: true, padding: 4)
      }
    ),
    (
      3,
      Rule("5.1 half-closed", "trailers", .streamClosed) {
        $0.headers(trailers, on: 3, isEnd: true)
      }
    ),
    (
      3,
      Rule("5.1 half-closed", "a request", .streamClosed) { $0.headers(Peer.request, on: 3) }
    ),
    (
      3,
      Rule("5.1 half-closed", "a header block in parts", .streamClosed) {
        $0.headers(Peer.request, on: 3, fragment: 5)
      }
    ),
    (
      1,
      Rule("6.3", "PRIORITY of four bytes", .frameSizeError) {
        $0.frame(FrameKind.priority, on: 1, [0, 0, 0, 1])
      }
    ),
    (
      1,
      Rule("6.3", "PRIORITY of six bytes", .frameSizeError) {
        $0.frame(FrameKind.priority, on: 1, [0, 0, 0, 1, 16, 0])
      }
    ),
    (
      1,
      Rule("6.9", "WINDOW_UPDATE of nothing", .protocolError) { $0.windowUpdate(1, increment: 0) }
    ),
    (
      3,
      Rule("6.9.1", "a window past 2^31 - 1", .flowControlError) {
        $0.windowUpdate(3, increment: 0x7FFF_FFFF)
      }
    ),
    (
      1,
      Rule("8.1", "trailers that end nothing", .protocolError) { $0.headers(trailers, on: 1) }
    ),
    (1, Rule("8.1", "a second request", .protocolError) { $0.headers(Peer.request, on: 1) }),
    (
      5,
      Rule("8.1", "trailers that end nothing, behind the answer", .protocolError) {
        $0.headers(trailers, on: 5)
      }
    ),
  ]

  @Test("What breaks a stream's rules resets it and nothing else", arguments: streamErrors)
  func streamError(stream: Int, rule: Rule) throws {
    for pieces in [Int.max, 1] {
      let peer = try Self.begun()
      try peer.send(pieces: pieces, rule.write)
      #expect(peer.error == nil, "\(peer.error?.reason ?? "")")
      #expect(peer.told == [.reset(stream, rule.code.rawValue, isByPeer: false)])
      #expect(peer.resets == [stream: rule.code.rawValue])
      #expect(peer.frames.count == 1)
      #expect(peer.connection.openStreams == 2)
      // 5.4.2: what had left before the reset was read is borne.
      try peer.send(rule.write)
      if stream != 1 || rule.what != "a second request", rule.what != "a request",
        rule.section != "6.3", !rule.what.contains("block")
      {
        #expect(peer.error == nil && peer.told == [] && peer.frames.isEmpty)
        #expect(try peer.isAlive())
      }
    }
  }

  @Test(
    "5.1: Streams that have ended bear what was under way, whoever ended them",
    arguments: [7, 9, 13]
  )
  func closed(stream: Int) throws {
    for pieces in [Int.max, 1] {
      let peer = try Self.begun()
      let window = peer.connection.receiveWindow
      try peer.send(pieces: pieces) { writer in
        writer.data(ByteBuffer(string: "abc"), on: stream)
        writer.data(ByteBuffer(string: "abc"), on: stream, padding: 5)
        writer.windowUpdate(stream, increment: 1)
        writer.windowUpdate(stream, increment: 0x7FFF_FFFF)
        writer.frame(FrameKind.priority, on: stream, [0, 0, 0, 1, 16])
        writer.headers(["known": "later"], on: stream, isEnd: true)
        writer.reset(stream)
        writer.reset(stream)
      }
      #expect(peer.error == nil && peer.told == [] && peer.frames.isEmpty)
      #expect(
        window - peer.connection.receiveWindow == 12,
        "6.9: it counts for the connection's window"
      )
      // 4.3: it was decoded, so the table has what it added.
      try peer.send { $0.headers(["known": "later"], on: 15) }
      #expect(peer.told == [.request(15, ["known": "later"], isEnd: false)])
    }
  }

  @Test("5.1: A half-closed stream still takes WINDOW_UPDATE, PRIORITY and RST_STREAM")
  func halfClosedByPeer() throws {
    let peer = try Self.begun()
    let key = try peer.key(3)
    try peer.serve { connection in
      connection.sendHeaders([":status": "200"], on: key)
      connection.sendData(ByteBuffer(repeating: 0, count: 70_000), on: key)
    }
    #expect(peer.received(on: 3) == 65_535)
    try peer.send { writer in
      writer.frame(FrameKind.priority, on: 3, [0, 0, 0, 1, 16])
      writer.windowUpdate(0, increment: 100_000)
      writer.windowUpdate(3, increment: 1000)
    }
    #expect(peer.error == nil && peer.told == [])
    #expect(peer.received(on: 3) == 1000)
    try peer.send { writer in
      writer.reset(3)
      writer.windowUpdate(3, increment: 10_000)
    }
    #expect(peer.told == [.reset(3, ErrorCode.cancel, isByPeer: true)])
    #expect(peer.frames.isEmpty, "nothing is sent on a stream that has been reset")
    try peer.serve { connection in
      connection.sendData(ByteBuffer(string: "a"), on: key)
      connection.sendEnd(["a": "b"], on: key)
      connection.openWindow(key, by: 1)
      connection.reset(key, .cancel)
    }
    #expect(peer.frames.isEmpty)
  }

  @Test("5.1: Behind its answer a server takes the rest of the request")
  func halfClosedByServer() throws {
    let peer = try Self.begun()
    try peer.send { writer in
      writer.data(ByteBuffer(string: "abc"), on: 5)
      writer.headers(["a": "b"], on: 5, isEnd: true)
      writer.data(ByteBuffer(string: "abc"), on: 5)
    }
    #expect(
      peer.told == [
        .data(5, "abc", window: 3, isEnd: false), .trailers(5, ["a": "b"]),
      ]
    )
    #expect(peer.connection.takeProgress().count == 1, "it is gone")
    #expect(peer.connection.openStreams == 2)
  }

  @Test("5.1: A request of headers alone, and one that DATA or trailers end")
  func ends() throws {
    let peer = try Peer()
    try peer.send { writer in
      writer.headers(["a": "b"], on: 1, isEnd: true)
      writer.headers(["a": "b"], on: 3)
      writer.data(ByteBuffer(string: "abc"), on: 3, isEnd: true)
      writer.headers(["a": "b"], on: 5)
      writer.data(ByteBuffer(), on: 5, isEnd: true)
      writer.headers(["a": "b"], on: 7)
      writer.headers(["c": "d"], on: 7, isEnd: true)
      writer.headers(["a": "b"], on: 9)
      writer.data(ByteBuffer(string: "abc"), on: 9, isEnd: true, padding: 9)
    }
    #expect(
      peer.told == [
        .request(1, ["a": "b"], isEnd: true), .request(3, ["a": "b"], isEnd: false),
        .data(3, "abc", window: 3, isEnd: true), .request(5, ["a": "b"], isEnd: false),
        .data(5, "", window: 0, isEnd: true), .request(7, ["a": "b"], isEnd: false),
        .trailers(7, ["c": "d"]), .request(9, ["a": "b"], isEnd: false),
        .data(9, "abc", window: 13, isEnd: true),
      ]
    )
    #expect(peer.connection.openStreams == 5)
    #expect(peer.connection.lastStream == 9)
  }

  @Test("5.1.1: The largest number is a stream's as any other")
  func largestStream() throws {
    let peer = try Peer()
    let key = try peer.open(0x7FFF_FFFF)
    try peer.serve { $0.sendEnd([":status": "200"], on: key) }
    guard case .headers(0x7FFF_FFFF, _, isEnd: true)? = peer.frames.first else {
      Issue.record("\(peer.frames)")
      return
    }
  }

  // MARK: Sections 5.1.2 and 8.7

  @Test("5.1.2, 8.7: Streams past the limit are refused; those that have ended don't count")
  func concurrency() throws {
    var settings = HTTP2Settings()
    settings.maxConcurrentStreams = 2
    let peer = try Peer(settings)
    let first = try peer.open(1, isEnd: true)
    try peer.open(3)
    try peer.send { writer in
      writer.headers(Peer.request, on: 5, isEnd: true)
      writer.headers(["known": "later"], on: 7)
      writer.data(ByteBuffer(string: "abc"), on: 7, isEnd: true)
    }
    #expect(peer.told == [.refused, .refused], "half-closed ones count")
    #expect(peer.resets == [5: ErrorCode.refusedStream, 7: ErrorCode.refusedStream])
    #expect(peer.connection.receiveWindow == 65_532)
    try peer.serve { $0.sendEnd([":status": "200"], on: first) }
    try peer.send { $0.headers(["known": "later"], on: 9) }
    #expect(peer.told == [.request(9, ["known": "later"], isEnd: false)])
    try peer.send { $0.headers(Peer.request, on: 11) }
    #expect(peer.told == [.refused])
    try peer.send { writer in
      writer.reset(3)
      writer.headers(["known": "later"], on: 13)
    }
    #expect(peer.told.last == .request(13, ["known": "later"], isEnd: false))
  }

  @Test("8.1: An answer's parts leave in their order, and its end with END_STREAM")
  func answer() throws {
    let peer = try Peer()
    let key = try peer.open(1, isEnd: true)
    try peer.serve { connection in
      connection.sendHeaders([":status": "200"], on: key)
      connection.sendData(ByteBuffer(string: "abc"), on: key)
      connection.sendEnd(["grpc-status": "0"], on: key)
      connection.sendData(ByteBuffer(string: "def"), on: key)
      connection.sendEnd(["grpc-status": "1"], on: key)
    }
    let told = peer.frames.map { frame in
      switch frame {
      case .headers(1, let list, let isEnd): "\(list.first(name: "grpc-status") ?? "") \(isEnd)"
      case .data(1, let bytes, let isEnd): "\(String(buffer: bytes)) \(isEnd)"
      default: "\(frame)"
      }
    }
    #expect(told == [" false", "abc false", "0 true"], "and nothing leaves behind it")
    #expect(peer.connection.takeProgress() == [.outputLeft(key), .closed(key)])
  }

  // MARK: Section 8.1.1

  /// The content-lengths of a request, the lengths of its DATA, and whether it is well-formed.
  private static let contentLengths: [([String], [Int], Bool)] = [
    ([], [], true), ([], [3], true), (["3"], [3], true), (["3"], [1, 2], true),
    (["3"], [1, 0, 2], true), (["0"], [], true), (["0"], [0], true), (["003"], [3], true),
    (["3", "3"], [3], true), (["3"], [], false), (["3"], [2], false), (["3"], [4], false),
    (["3"], [2, 2], false), (["0"], [1], false), (["3", "4"], [3], false), (["+3"], [3], false),
    (["-3"], [], false), ([""], [], false), (["3,3"], [3], false), (["3 "], [3], false),
    (["0x3"], [3], false), (["99999999999999999999"], [3], false),
    (["9223372036854775807"], [3], false), (["٣"], [3], false),
  ]

  @Test("8.1.1: DATA must be as long as content-length says", arguments: contentLengths)
  func contentLength(values: [String], lengths: [Int], isValid: Bool) throws {
    for end in ["the last frame", "trailers"] {
      for padding in [UInt8?.none, 7] {
        let peer = try Peer()
        try peer.send { writer in
          var headers = Peer.request
          for value in values { headers.add(name: "content-length", value: value) }
          let endsWithFrame = end == "the last frame"
          writer.headers(headers, on: 1, isEnd: endsWithFrame && lengths.isEmpty)
          for (index, length) in lengths.enumerated() {
            let isEnd = endsWithFrame && index == lengths.count - 1
            let content = ByteBuffer(repeating: 0x61, count: length)
            writer.data(content, on: 1, isEnd: isEnd, padding: padding)
          }
          if !endsWithFrame { writer.headers(["a": "b"], on: 1, isEnd: true) }
        }
        #expect(peer.error == nil)
        #expect(peer.resets == (isValid ? [:] : [1: ErrorCode.protocolError]))
        #expect(peer.connection.openStreams == (isValid ? 1 : 0))
      }
    }
  }

  @Test("8.1.1: What is more than content-length is not given on")
  func tooMuch() throws {
    let peer = try Peer()
    try peer.send { writer in
      writer.headers(["content-length": "3"], on: 1)
      writer.data(ByteBuffer(string: "abc"), on: 1)
      writer.data(ByteBuffer(string: "d"), on: 1)
    }
    #expect(
      peer.told == [
        .request(1, ["content-length": "3"], isEnd: false),
        .data(1, "abc", window: 3, isEnd: false),
        .reset(1, ErrorCode.protocolError, isByPeer: false),
      ]
    )
  }
}
