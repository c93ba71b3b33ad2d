import GRPCEngineHTTP2
import GRPCEngineTesting
import NIOCore
import Testing

/// RFC 9113 sections 5.2, 6.9, 6.9.1 and 6.9.2: who may send how much.
struct WindowTests {
  private static func content(_ count: Int) -> ByteBuffer {
    ByteBuffer(repeating: 0x61, count: count)
  }

  // MARK: What the client may send

  @Test("6.9.1: DATA past the connection's window ends the connection, and up to it does not")
  func connectionWindow() throws {
    var settings = HTTP2Settings()
    settings.streamWindow = 1 << 20
    for (pieces, isPast) in [(Int.max, true), (.max, false), (1000, true), (1000, false)] {
      let peer = try Peer(settings)
      try peer.open(1)
      try peer.open(3)
      try peer.send(pieces: pieces) { writer in
        for _ in 0..<2 { writer.data(Self.content(16_384), on: 1) }
        writer.data(Self.content(16_384), on: 3)
        writer.data(Self.content(16_383 - 11), on: 3)
        writer.data(ByteBuffer(), on: 3, padding: 10)
        writer.data(ByteBuffer(), on: 3)
      }
      #expect(peer.error == nil && peer.connection.receiveWindow == 0)
      if isPast {
        try peer.send { $0.data(Self.content(1), on: 1) }
        #expect(peer.error?.code == .flowControlError)
        continue
      }
      try peer.serve { $0.openWindow(by: 10) }
      guard case .windowUpdate(0, 10)? = peer.frames.first else {
        Issue.record("\(peer.frames)")
        return
      }
      try peer.send { $0.data(Self.content(10), on: 1) }
      #expect(peer.error == nil)
    }
  }

  @Test(
    "6.9.2, 6.9.3: another window of the server's is that of all streams, a smaller one once it is known"
  )
  func changedWindow() throws {
    var settings = HTTP2Settings()
    settings.streamWindow = 1000
    let peer = try Peer(settings)
    try peer.open(1)
    try peer.send { $0.data(Self.content(600), on: 1) }
    try peer.serve { $0.changeStreamWindow(to: 100) }
    #expect(peer.frames.count == 1)
    #expect(peer.connection.awaitsSmallerWindow == true)
    try peer.open(3)
    try peer.send { writer in
      writer.data(Self.content(400), on: 1)
      writer.data(Self.content(1000), on: 3)
    }
    #expect(peer.resets == [:])
    try peer.send { $0.settingsAck() }
    #expect(peer.connection.awaitsSmallerWindow == false)
    try peer.open(5)
    try peer.send { writer in
      writer.data(Self.content(100), on: 5)
      writer.data(Self.content(1), on: 1)
    }
    #expect(peer.resets == [1: ErrorCode.flowControlError])
    // It is 900 below 0, as its sender knows too.
    let key = try peer.key(3)
    try peer.serve { $0.openWindow(key, by: 950) }
    try peer.send { $0.data(Self.content(50), on: 3) }
    #expect(peer.resets == [:])
    try peer.serve { $0.changeStreamWindow(to: 1000) }
    #expect(peer.connection.awaitsSmallerWindow == false)
    try peer.send { writer in
      writer.settingsAck()
      writer.data(Self.content(900), on: 3)
      writer.data(Self.content(900), on: 5)
    }
    #expect(peer.resets == [:])
    try peer.send { $0.data(Self.content(1), on: 3) }
    #expect(peer.resets == [3: ErrorCode.flowControlError])
  }

  @Test("6.9.1: DATA past a stream's window resets the stream, and up to it does not")
  func streamWindow() throws {
    var settings = HTTP2Settings()
    settings.streamWindow = 1000
    for padding in [UInt8?.none, 99] {
      let peer = try Peer(settings)
      let key = try peer.open(1)
      let length = padding == nil ? 1000 : 900
      try peer.send { $0.data(Self.content(length), on: 1, padding: padding) }
      #expect(peer.resets == [:])
      try peer.serve { $0.openWindow(key, by: 500) }
      try peer.send { $0.data(Self.content(500), on: 1) }
      #expect(peer.resets == [:])
      try peer.send { $0.data(Self.content(1), on: 1) }
      #expect(peer.resets == [1: ErrorCode.flowControlError])
      #expect(peer.connection.receiveWindow == 65_535 - 1501, "the connection's counts it")
      #expect(try peer.isAlive())
    }
  }

  @Test("6.9: DATA that costs its stream still counts for the connection's window")
  func lostData() throws {
    let peer = try Peer()
    try peer.open(1, isEnd: true)
    try peer.send { writer in
      writer.data(Self.content(10), on: 1)
      writer.data(Self.content(10), on: 1)
    }
    #expect(peer.resets == [1: ErrorCode.streamClosed])
    #expect(peer.connection.receiveWindow == 65_515)
  }

  @Test("6.9.2: A smaller window holds once the client has read of it", arguments: [false, true])
  func unacknowledgedWindow(isPast: Bool) throws {
    var settings = HTTP2Settings()
    settings.streamWindow = 100
    let peer = try Peer(bare: settings)
    try peer.send { writer in
      writer.preface()
      writer.settings()
      for stream in [1, 3] { writer.headers(Peer.request, on: stream) }
      for _ in 0..<3 { writer.data(Self.content(16_384), on: 1) }
      writer.data(Self.content(16_383), on: 1)
    }
    #expect(peer.resets == [:])
    try peer.serve { $0.openWindow(by: 1 << 20) }
    if isPast {
      try peer.send { $0.data(Self.content(1), on: 1) }
      #expect(peer.resets == [1: ErrorCode.flowControlError])
      return
    }
    try peer.send { writer in
      writer.settingsAck()
      writer.data(Self.content(100), on: 3)
      writer.data(Self.content(1), on: 3)
    }
    #expect(peer.resets == [3: ErrorCode.flowControlError])
    // Its window is below 0 now, as its sender knows too.
    let key = try peer.key(1)
    try peer.serve { $0.openWindow(key, by: 65_535) }
    try peer.send { $0.data(Self.content(100), on: 1) }
    #expect(peer.resets == [:])
    try peer.send { $0.data(Self.content(1), on: 1) }
    #expect(peer.resets == [1: ErrorCode.flowControlError])
  }

  // MARK: What the server may send

  private static let answer: HeaderList = [":status": "200"]

  @Test("What is to be written keeps little more memory than it is, whatever the windows")
  func outputMemory() throws {
    for window in [1000, 4097, 10_000, 16_384, 30_000] {
      let peer = try Peer(HTTP2Settings(), [(4, UInt32(window))])
      let keys = try stride(from: 1, to: 40, by: 2).map { try peer.open($0, isEnd: true) }
      for key in keys {
        peer.connection.sendHeaders(Self.answer, on: key)
        peer.connection.sendData(Self.content(32_763), on: key)
      }
      let (pieces, last) = peer.connection.takeOutput()
      let all = pieces + (last.map { [$0] } ?? [])
      let (size, memory) = all.reduce((0, 0)) {
        ($0.0 + $1.readableBytes, $0.1 + $1.storageCapacity)
      }
      #expect(size > min(20 * window, 60_000))
      #expect(memory <= 2 * size + 64 * 1024)
    }
  }

  @Test("5.2.1, 6.9.1: DATA waits for the stream's window, headers and the end of another do not")
  func sendWindow() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 10)])
    let (first, second) = (try peer.open(1, isEnd: true), try peer.open(3, isEnd: true))
    try peer.serve { connection in
      connection.sendHeaders(Self.answer, on: first)
      connection.sendData(Self.content(25), on: first)
      connection.sendEnd(["grpc-status": "0"], on: first)
      connection.sendEnd(Self.answer, on: second)
    }
    #expect(peer.frames.count == 3)
    #expect(peer.received(on: 1) == 10)
    #expect(peer.connection.takeProgress() == [.closed(second)])
    try peer.send { $0.windowUpdate(1, increment: 14) }
    #expect(peer.received(on: 1) == 14)
    #expect(peer.connection.takeProgress() == [.partLeft(first)])
    try peer.send { $0.windowUpdate(1, increment: 1) }
    #expect(peer.received(on: 1) == 1 && peer.frames.count == 2)
    #expect(peer.connection.takeProgress() == [.closed(first)])
  }

  @Test("6.9.1: The end of an answer needs no window")
  func endWithoutWindow() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 10)])
    let key = try peer.open(1)
    try peer.serve { connection in
      connection.sendHeaders(Self.answer, on: key)
      connection.sendData(Self.content(10), on: key)
      connection.sendData(ByteBuffer(), on: key)
      connection.sendEnd(["grpc-status": "0"], on: key)
    }
    #expect(peer.frames.count == 3)
    #expect(
      peer.connection.takeProgress() == [.outputLeft(key), .outputLeft(key), .endLeft(key)]
    )
  }

  @Test("6.9.1: The connection's window is all streams'")
  func connectionSendWindow() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 1 << 20)])
    let keys = try [1, 3, 5].map { try peer.open($0, isEnd: true) }
    try peer.serve { connection in
      for key in keys {
        connection.sendHeaders(Self.answer, on: key)
        connection.sendData(Self.content(40_000), on: key)
      }
    }
    #expect(peer.received(on: 1) == 40_000)
    #expect(peer.received(on: 3) == 25_535)
    #expect(peer.received(on: 5) == 0)
    try peer.send { $0.windowUpdate(3, increment: 1 << 20) }
    #expect(peer.frames.isEmpty)
    var rest = [0, 0]
    for increment in [1, 14_463, 1, 40_000, 1] {
      try peer.send { $0.windowUpdate(0, increment: increment) }
      rest[0] += peer.received(on: 3)
      rest[1] += peer.received(on: 5)
    }
    #expect(rest == [14_465, 40_000])
    #expect(peer.connection.hasReadyStreams == false)
  }

  @Test("6.9.2: SETTINGS change the windows of all streams, which may fall below 0")
  func negativeWindow() throws {
    let peer = try Peer()
    let (first, second) = (try peer.open(1, isEnd: true), try peer.open(3, isEnd: true))
    try peer.serve { connection in
      connection.sendHeaders(Self.answer, on: first)
      connection.sendData(Self.content(40_000), on: first)
    }
    #expect(peer.received(on: 1) == 40_000)
    try peer.send { writer in
      writer.settings([(4, 16_384)])
      writer.windowUpdate(0, increment: 1 << 20)
    }
    try peer.serve { connection in
      connection.sendData(Self.content(40_000), on: first)
      connection.sendHeaders(Self.answer, on: second)
      connection.sendData(Self.content(40_000), on: second)
    }
    #expect(peer.received(on: 1) == 0, "its window is 16,384 - 40,000")
    #expect(peer.received(on: 3) == 16_384)
    try peer.send { $0.windowUpdate(1, increment: 23_616) }
    #expect(peer.received(on: 1) == 0)
    try peer.send { $0.windowUpdate(1, increment: 2) }
    #expect(peer.received(on: 1) == 2)
    try peer.send { $0.settings([(4, 0)]) }
    #expect(peer.received(on: 1) == 0 && peer.received(on: 3) == 0)
    try peer.send { $0.settings([(4, 100_000)]) }
    #expect(peer.received(on: 1) == 39_998 && peer.received(on: 3) == 23_616)
    let third = try peer.open(5)
    try peer.serve { connection in
      connection.sendHeaders(Self.answer, on: third)
      connection.sendData(Self.content(100_001), on: third)
    }
    #expect(peer.received(on: 5) == 100_000, "a new stream begins with the new window")
  }

  @Test("6.9.2: SETTINGS do not change the connection's window")
  func connectionWindowStays() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 0x7FFF_FFFF)])
    let key = try peer.open(1)
    try peer.serve { $0.sendData(Self.content(100_000), on: key) }
    #expect(peer.received(on: 1) == 65_535)
  }

  /// A connection with windows of 2^31 - 1, and the key of its stream 1.
  private static func wideOpen() throws -> (Peer, StreamKey) {
    let peer = try Peer()
    let key = try peer.open(1)
    try peer.send { writer in
      writer.windowUpdate(0, increment: 0x7FFF_FFFF - 65_535)
      writer.windowUpdate(1, increment: 0x7FFF_FFFF - 65_535)
    }
    #expect(peer.error == nil && peer.told == [])
    return (peer, key)
  }

  @Test("6.9.1: Windows may be 2^31 - 1, and not one byte more")
  func largestWindow() throws {
    let (connection, _) = try Self.wideOpen()
    try connection.send { $0.windowUpdate(0, increment: 1) }
    #expect(connection.error?.code == .flowControlError)
    let (stream, _) = try Self.wideOpen()
    try stream.send { $0.windowUpdate(1, increment: 1) }
    #expect(stream.resets == [1: ErrorCode.flowControlError])
    for values: [(UInt16, UInt32)] in [[(4, 65_536)], [(4, 65_536), (4, 65_535)]] {
      let (peer, _) = try Self.wideOpen()
      try peer.send { $0.settings(values) }
      #expect(peer.error?.code == .flowControlError, "6.9.2, and 6.5.3: each holds in its turn")
    }
    let (peer, key) = try Self.wideOpen()
    try peer.send { $0.settings([(4, 0), (4, 65_535)]) }
    #expect(peer.error == nil)
    try peer.serve { $0.sendData(Self.content(5), on: key) }
    try peer.send { $0.settings([(4, 65_540)]) }
    #expect(peer.error == nil)
  }

  @Test("5.2: A stream without a window keeps none of the others from theirs")
  func otherStreams() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 0)])
    let keys = try (0..<100).map { try peer.open(2 * $0 + 1, isEnd: true) }
    try peer.serve { connection in
      for key in keys {
        connection.sendHeaders(Self.answer, on: key)
        connection.sendData(Self.content(100), on: key)
        connection.sendEnd(["grpc-status": "0"], on: key)
      }
    }
    for key in keys.reversed() {
      try peer.send { $0.windowUpdate(key.id, increment: 100) }
      #expect(peer.received(on: key.id) == 100)
    }
    #expect(peer.connection.openStreams == 0)
  }

  @Test("Streams take turns at a window that is opened bit by bit")
  func turns() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 1 << 20)])
    let keys = try (0..<3).map { try peer.open(2 * $0 + 1, isEnd: true) }
    try peer.serve { connection in
      for key in keys { connection.sendData(Self.content(100_000), on: key) }
    }
    var received = [1: 0, 3: 0, 5: 0]
    for _ in 0..<30 {
      try peer.send { $0.windowUpdate(0, increment: 1000) }
      for key in keys { received[key.id, default: 0] += peer.received(on: key.id) }
    }
    #expect(received == [1: 10_000, 3: 10_000, 5: 10_000])
  }
}
