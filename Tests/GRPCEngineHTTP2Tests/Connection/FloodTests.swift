import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

@testable import GRPCEngineHTTP2

/// RFC 9113 section 10.5: what a client may cost. The rates are counted on a clock that a test moves.
struct FloodTests {
  private static let calm = HTTP2ErrorCode.enhanceYourCalm

  /// Sends a frame again and again; after each time in which `most` may come, as many may come anew.
  private static func expectRate(
    _ peer: Peer,
    most: Int,
    in time: TimeAmount,
    _ write: (inout FrameWriter) -> Void
  ) throws {
    for _ in 0..<3 {
      for _ in 0..<most {
        write(&peer.writer)
        if peer.writer.bytes.readableBytes > 60_000 { try peer.send { _ in } }
      }
      try peer.send { _ in }
      try #require(peer.error == nil, "as many may come")
      peer.now = peer.now + time
    }
    try peer.send { writer in
      for _ in 0...most { write(&writer) }
    }
    #expect(peer.error?.code == Self.calm, "and not one more")
  }

  @Test("10.5: SETTINGS")
  func settings() throws {
    let peer = try Peer()
    peer.now = peer.now + .seconds(1)
    try Self.expectRate(peer, most: 1000, in: .seconds(1)) { $0.settings() }
  }

  @Test("10.5: SETTINGS that change the windows of many streams again and again")
  func windowChanges() throws {
    let peer = try Peer()
    for stream in 0..<1000 { try peer.open(2 * stream + 1) }
    for round in 0..<100 { try peer.send { $0.settings([(4, UInt32(round % 2))]) } }
    #expect(peer.error == nil)
    try peer.send { $0.settings([(4, 5)]) }
    #expect(peer.error?.reason == "too_many_window_changes")
  }

  @Test("10.5: DATA without content that ends nothing", arguments: [UInt8?.none, 9])
  func emptyData(padding: UInt8?) throws {
    let peer = try Peer()
    try peer.open(1)
    try peer.serve { $0.openWindow(by: 1 << 20) }
    let key = try peer.key(1)
    try peer.serve { $0.openWindow(key, by: 1 << 20) }
    try Self.expectRate(peer, most: 1000, in: .seconds(1)) { writer in
      writer.data(ByteBuffer(), on: 1, padding: padding)
    }
  }

  @Test("10.5: Streams that the client opens and resets")
  func resets() throws {
    var settings = HTTP2Settings()
    settings.maxResets = 500
    var stream = -1
    try Self.expectRate(Peer(settings), most: 500, in: .seconds(5)) { writer in
      stream += 2
      writer.headers(Peer.request, on: stream, isEnd: true)
      writer.reset(stream)
    }
  }

  @Test("10.5: Streams that the server has to reset", arguments: 0..<4)
  func streamErrors(kind: Int) throws {
    var stream = -1
    try Self.expectRate(Peer(), most: 1000, in: .seconds(30)) { writer in
      stream += 2
      switch kind {
      case 0:
        writer.headers(Peer.request, on: stream, isEnd: true)
        writer.headers(["a": "b"], on: stream, isEnd: true)
      case 1:
        writer.headers(Peer.request, on: stream)
        writer.windowUpdate(stream, increment: 0)
      case 2:
        writer.headers(["content-length": "3"], on: stream, isEnd: true)
      default:
        writer.headers(Peer.request, on: stream)
        writer.frame(FrameKind.priority, on: stream, [1])
      }
    }
  }

  @Test(
    "10.5: Answers that are not read: to pings, to settings, and streams that are refused",
    arguments: 0..<3
  )
  func unreadAnswers(kind: Int) throws {
    var settings = HTTP2Settings()
    settings.maxConcurrentStreams = 0
    var connection = HTTP2Connection(settings)
    var writer = FrameWriter()
    writer.preface()
    writer.settings()
    var (failure, sent, stream) = (HTTP2ConnectionError?.none, 0, 1)
    var now = NIODeadline.uptimeNanoseconds(1)
    while failure == nil, sent < 300_000 {
      for _ in 0..<500 {
        switch kind {
        case 0: writer.ping()
        case 1: writer.settings()
        default: writer.headers([:], on: stream, isEnd: true)
        }
        stream += 2
      }
      sent += 500
      now = now + .seconds(1)
      connection.received(writer.take())
      do throws(HTTP2ConnectionError) {
        while try connection.next(at: now) != nil {}
      } catch {
        failure = error
      }
    }
    #expect(failure?.code == Self.calm)
    let (pieces, last) = connection.takeOutput()
    let bytes = pieces.reduce(last?.readableBytes ?? 0) { $0 + $1.readableBytes }
    #expect(bytes < 1_100_000)
  }

  @Test("6.10, 10.5.1: A header block of very many frames")
  func manyContinuations() throws {
    for (count, isTaken) in [(64, true), (65, false), (100_000, false)] {
      let peer = try Peer()
      try peer.send { writer in
        writer.frame(FrameKind.headers, on: 1)
        for _ in 1..<count { writer.frame(FrameKind.continuation, on: 1) }
        writer.frame(FrameKind.continuation, Flag.endHeaders, on: 1)
      }
      #expect((peer.error == nil) == isTaken)
      if !isTaken { #expect(peer.error?.code == Self.calm) }
    }
  }

  @Test("10.5.1: A header block that is too large ends the connection before it is whole")
  func largeBlock() throws {
    var settings = HTTP2Settings()
    settings.maxHeaderBlock = 20_000
    for (count, isTaken) in [(20_000, true), (20_001, false)] {
      // Size updates count as bytes, and are no fields.
      let peer = try Peer(settings)
      try peer.send { writer in
        writer.frame(FrameKind.headers, on: 1, Array(repeating: 0x20, count: 16_384))
        writer.frame(
          FrameKind.continuation,
          on: 1,
          Array(repeating: 0x20, count: count - 16_384)
        )
      }
      #expect((peer.error == nil) == isTaken)
      if !isTaken { #expect(peer.error?.code == Self.calm) }
    }
  }

  @Test("10.5.1: Of a header list that is too large its beginning is kept, and its size told")
  func largeList() throws {
    var settings = HTTP2Settings()
    settings.maxHeaderListSize = 3000
    let peer = try Peer(settings)
    let value = String(repeating: "v", count: 468)
    let many = HPACKHeaders((0..<20).map { ("n\($0 % 10)", value) })
    try peer.send { writer in
      writer.headers(many, on: 1)
      writer.headers(["n9": value], on: 3)
    }
    guard case .request(_, let block, isEnd: false)? = peer.events.first else {
      Issue.record("\(peer.told)")
      return
    }
    #expect(block.list.fields.count == 5)
    #expect(block.size == 20 * 502)
    #expect(peer.told.last == .request(3, ["n9": value], isEnd: false), "4.3: the table has all")
  }

  @Test("10.5.1: One byte a field makes no list that is kept")
  func bomb() throws {
    let peer = try Peer()
    try peer.send { $0.headers(["x": String(repeating: "v", count: 4000)], on: 1) }
    try peer.send { writer in
      writer.frame(
        FrameKind.headers,
        Flag.endHeaders,
        on: 3,
        Array(repeating: 0xBE, count: 16_384)
      )
    }
    guard case .request(_, let block, isEnd: false)? = peer.events.first else {
      Issue.record("\(peer.told)")
      return
    }
    #expect(block.list.fields.count == 4)
    #expect(block.size == 16_384 * 4033)
  }

  @Test(
    "10.5: Frames of one byte on many streams cost what they cost on one",
    .timeLimit(.minutes(1))
  )
  func manyStreams() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 0)])
    let count = 4096
    var (keys, stream) = ([StreamKey](), 1)
    while keys.count < count {
      keys.append(try peer.open(stream, isEnd: true))
      stream += 2
    }
    try peer.serve { connection in
      for key in keys { connection.sendData(ByteBuffer(repeating: 0, count: 100), on: key) }
    }
    var received = 0
    for round in 0..<4 {
      peer.writer.settings([(4, UInt32(round + 1))])
      for key in keys { peer.writer.windowUpdate(key.id, increment: 1) }
      peer.connection.received(peer.writer.take())
      while try peer.connection.next(at: peer.now) != nil {}
      peer.connection.sendWaiting()
      let (pieces, last) = peer.connection.takeOutput()
      for piece in pieces + (last.map { [$0] } ?? []) {
        received += WireFrame.split(piece).reduce(0) {
          $0 + ($1.type == FrameKind.data ? $1.length : 0)
        }
      }
    }
    #expect(received == count * 4 * 2)
  }

  @Test("Streams that come and go without a window leave nothing behind")
  func comingAndGoing() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 1 << 20)])
    let first = try peer.open(1, isEnd: true)
    try peer.serve { $0.sendData(ByteBuffer(repeating: 0, count: 65_536), on: first) }
    for round in 1...3000 {
      peer.now = peer.now + .seconds(1)
      let stream = 2 * round + 1
      let key = try peer.open(stream, isEnd: true)
      // It waits for the connection's window, which nobody opens.
      peer.connection.sendData(ByteBuffer(repeating: 0, count: 10), on: key)
      try peer.send { $0.reset(stream) }
    }
    #expect(peer.connection.openStreams == 1)
    #expect(peer.connection.starved.count < 200)
    try peer.send { $0.windowUpdate(0, increment: 10) }
    #expect(peer.received(on: 1) == 1)
    #expect(peer.connection.starved.isEmpty && peer.connection.ready.isEmpty)
  }
}
