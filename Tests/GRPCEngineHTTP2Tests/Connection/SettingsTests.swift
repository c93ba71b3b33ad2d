import GRPCEngineHTTP2
import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

/// RFC 9113 section 6.5: what a client announces.
struct SettingsTests {
  private static let refused = [
    Rule("6.5.2", "SETTINGS_ENABLE_PUSH of 2", .protocolError) { $0.settings([(2, 2)]) },
    Rule("6.5.2", "SETTINGS_ENABLE_PUSH of 2^32 - 1", .protocolError) {
      $0.settings([(2, .max)])
    },
    Rule("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE of 2^31", .flowControlError) {
      $0.settings([(4, 1 << 31)])
    },
    Rule("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE of 2^32 - 1", .flowControlError) {
      $0.settings([(4, .max)])
    },
    Rule("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE of 2^31, taken back", .flowControlError) {
      $0.settings([(4, 1 << 31), (4, 1)])
    },
    Rule("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 2^14 - 1", .protocolError) {
      $0.settings([(5, 16_383)])
    },
    Rule("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 0", .protocolError) { $0.settings([(5, 0)]) },
    Rule("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 2^24", .protocolError) {
      $0.settings([(5, 1 << 24)])
    },
    Rule("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 2^32 - 1", .protocolError) {
      $0.settings([(5, .max)])
    },
  ]

  @Test("6.5.2: Values out of their range end the connection", arguments: refused)
  func refusedValue(rule: Rule) throws {
    try rule.expectConnectionError(Peer())
    let first = try {
      let peer = try Peer(bare: HTTP2Settings())
      try peer.send { $0.preface() }
      return peer
    }()
    try rule.expectConnectionError(first)
  }

  private static let taken: [[(UInt16, UInt32)]] = [
    [], [(1, 0)], [(1, .max)], [(2, 0)], [(2, 1)], [(3, 0)], [(3, .max)], [(4, 0)],
    [(4, 0x7FFF_FFFF)], [(5, 16_384)], [(5, (1 << 24) - 1)], [(6, 0)], [(6, .max)],
    [(0, 1), (7, 2), (8, 1), (0xFFFF, .max)], [(4, 5), (4, 6), (5, 20_000), (5, 16_384)],
  ]

  @Test("6.5.3: SETTINGS are acknowledged, and unknown ones ignored", arguments: taken.indices)
  func takenValues(index: Int) throws {
    for pieces in [Int.max, 1] {
      let peer = try Peer()
      try peer.send(pieces: pieces) { writer in
        writer.settings(Self.taken[index])
        writer.ping(5)
      }
      #expect(peer.error == nil)
      #expect(peer.told == [.settings, .ping])
      guard peer.frames.count == 2, case .settings(let values, isAck: true) = peer.frames[0],
        values.isEmpty
      else {
        Issue.record("\(peer.frames)")
        return
      }
    }
  }

  @Test("6.5.3: SETTINGS are acknowledged before anything is sent by them")
  func acknowledgedFirst() throws {
    let peer = try Peer(HTTP2Settings(), [(4, 0)])
    let key = try peer.open(1)
    try peer.serve { $0.sendData(ByteBuffer(repeating: 0, count: 30_000), on: key) }
    #expect(peer.frames.isEmpty)
    try peer.send { $0.settings([(5, 20_000), (4, 30_000)]) }
    guard peer.frames.count == 3, case .settings(_, isAck: true) = peer.frames[0],
      case .data(1, let first, false) = peer.frames[1],
      case .data(1, let second, false) = peer.frames[2]
    else {
      Issue.record("\(peer.frames)")
      return
    }
    #expect(first.readableBytes == 20_000)
    #expect(second.readableBytes == 10_000)
  }

  @Test(
    "4.2, 6.5.2: No frame is larger than the client's SETTINGS_MAX_FRAME_SIZE",
    arguments: [16_384, 16_385, 50_000, 1 << 20]
  )
  func maxFrameSize(size: Int) throws {
    let peer = try Peer(HTTP2Settings(), [(4, 1 << 24), (5, UInt32(size))])
    try peer.send { $0.windowUpdate(0, increment: 1 << 24) }
    let key = try peer.open(1, isEnd: true)
    let value = String(repeating: "\u{1}", count: 100_000)
    // `Peer` reads what header blocks are in one piece; their frames are looked at here.
    peer.connection.sendHeaders([":status": "200", "long": value], on: key)
    peer.connection.sendData(ByteBuffer(repeating: 0, count: 200_000), on: key)
    var output = ByteBuffer()
    while peer.connection.hasOutput || peer.connection.hasReadyStreams {
      let (pieces, last) = peer.connection.takeOutput()
      for piece in pieces { output.writeImmutableBuffer(piece) }
      if let last { output.writeImmutableBuffer(last) }
      peer.connection.sendWaiting()
    }
    let frames = WireFrame.split(output)
    let most = min(size, 128 * 1024)
    #expect(frames.allSatisfy { $0.length <= size })
    let block = frames.filter { $0.type != FrameKind.data }
    #expect(block.first?.type == FrameKind.headers)
    #expect(block.dropFirst().allSatisfy { $0.type == FrameKind.continuation })
    #expect(block.dropLast().allSatisfy { $0.flags & Flag.endHeaders == 0 && $0.length == size })
    #expect(block.last?.flags == Flag.endHeaders)
    let data = frames.filter { $0.type == FrameKind.data }
    #expect(data.dropLast().allSatisfy { $0.length == most })
    #expect(data.reduce(0) { $0 + $1.length } == 200_000)
    var reader = ClientReader()
    reader.append(output)
    guard case .headers(1, let list, isEnd: false)? = try reader.next() else {
      Issue.record("no headers")
      return
    }
    #expect(list.first(name: "long") == value)
  }

  @Test("6.5.2: SETTINGS_MAX_FRAME_SIZE may fall again")
  func smallerFrames() throws {
    let peer = try Peer(HTTP2Settings(), [(5, 60_000)])
    let key = try peer.open(1)
    try peer.serve { $0.sendData(ByteBuffer(repeating: 0, count: 30_000), on: key) }
    #expect(peer.frames.count == 1)
    try peer.send { $0.settings([(5, 16_384)]) }
    try peer.serve { $0.sendData(ByteBuffer(repeating: 0, count: 30_000), on: key) }
    #expect(peer.frames.count == 2)
  }

  @Test("4.3.1: A smaller SETTINGS_HEADER_TABLE_SIZE is followed by a size update, and held to")
  func tableSize() throws {
    let peer = try Peer()
    let keys = try (0..<4).map { try peer.open(2 * $0 + 1, isEnd: true) }
    let list = HeaderList([
      HeaderField(":status", "200"), HeaderField("x-repeated", "value", isRepeated: true),
    ])
    func block(_ connection: inout HTTP2Connection, on key: StreamKey) -> [UInt8] {
      connection.sendEnd(list, on: key)
      let last = connection.takeOutput().last ?? ByteBuffer()
      return Array(last.readableBytesView.dropFirst(9))
    }
    let first = block(&peer.connection, on: keys[0])
    #expect(block(&peer.connection, on: keys[1]) == [0x88, 0xBE])
    try peer.send { $0.settings([(1, 0)]) }
    let updated = block(&peer.connection, on: keys[2])
    #expect(updated.prefix(3) == [0x20, 0x20, 0x88])
    #expect(!updated.contains(0xBE))
    try peer.send { $0.settings([(1, 100)]) }
    let raised = block(&peer.connection, on: keys[3])
    #expect(raised == [0x20, 0x3F, 100 - 31] + first)
  }
}
