import GRPCEngineHTTP2
import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

/// RFC 9113 sections 8.2 and 8.3, as far as fields are looked at here: what is malformed is marked, and
/// `RequestHead` of the transport answers it with PROTOCOL_ERROR. Its tests are in RequestHeadTests.
struct HeaderRuleTests {
  /// A field that comes as a literal.
  private static func received(_ name: [UInt8], _ value: [UInt8]) throws -> HeaderField {
    var block = ByteBuffer(bytes: [0, UInt8(name.count)] + name)
    block.writeBytes([UInt8(value.count)] + value)
    let peer = try Peer()
    let bytes = Array(block.readableBytesView)
    try peer.send { $0.frame(FrameKind.headers, Flag.endHeaders, on: 1, bytes) }
    guard case .request(_, let list, _)? = peer.events.first else {
      Issue.record("\(peer.told)")
      return HeaderField("", "")
    }
    return try #require(list.list.fields.first)
  }

  /// RFC 9110's tokens, without upper case.
  private static let nameBytes = Set("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz".utf8)

  @Test("8.2.1: Names are made of lower-case token characters", arguments: UInt8.min...UInt8.max)
  func names(byte: UInt8) throws {
    let isValid = Self.nameBytes.contains(byte)
    for name in [[byte], [0x61, byte], [byte, 0x61], [0x61, byte, 0x61]] {
      if byte == UInt8(ascii: ":"), name.first == byte { continue }
      #expect(try Self.received(name, [0x61]).isMalformed == !isValid)
    }
  }

  @Test("8.2.1: A name is not empty, and a colon begins a pseudo-header only")
  func oddNames() throws {
    #expect(try Self.received([], [0x61]).isMalformed)
    #expect(try !Self.received([], [0x61]).isPseudo)
    #expect(try Self.received(Array(":path".utf8), [0x61]).isPseudo)
    #expect(try Self.received(Array("a:path".utf8), [0x61]).isMalformed)
  }

  @Test("8.2.1: Values have no control characters", arguments: UInt8.min...UInt8.max)
  func values(byte: UInt8) throws {
    // NUL, CR and LF must be refused; RFC 9110 section 5.5 knows no other control characters but tabs.
    let isValid = byte >= 0x20 && byte != 0x7F || byte == 0x09
    for value in [[byte], [0x61, byte, 0x61]] {
      for name in ["a", ":path", "content-type"] {
        #expect(try Self.received(Array(name.utf8), value).isMalformed == !isValid)
      }
    }
  }

  @Test("8.2.1: Values may be empty, and blanks at their ends are borne")
  func oddValues() throws {
    #expect(try !Self.received([0x61], []).isMalformed)
    #expect(try !Self.received([0x61], Array(" a\t".utf8)).isMalformed)
  }

  @Test(
    "8.2.2: Fields that speak of one connection are malformed",
    arguments: ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"]
  )
  func connectionSpecific(name: String) throws {
    #expect(try Self.received(Array(name.utf8), [0x61]).isMalformed)
    // Nor by the static or dynamic table.
    let peer = try Peer()
    try peer.send { writer in
      writer.headers([name: "first"], on: 1)
      writer.headers([name: "second"], on: 3)
      writer.headers([name: "second"], on: 5)
    }
    #expect(peer.events.count == 3)
    for case .request(_, let block, _) in peer.events {
      #expect(block.list.fields.map(\.isMalformed) == [true])
    }
  }

  @Test("8.2: A malformed field stays so when its name or all of it is repeated by the table")
  func repeatedField() throws {
    let peer = try Peer()
    try peer.send { writer in
      writer.headers(["Upper": "a"], on: 1)
      writer.headers(["Upper": "b"], on: 3)
      writer.headers(["Upper": "b"], on: 5)
      writer.headers(["lower": "a\u{0}"], on: 7)
      writer.headers(["lower": "a\u{0}"], on: 9)
      writer.headers(["lower": "a"], on: 11)
    }
    var malformed: [Bool] = []
    for case .request(_, let block, _) in peer.events {
      malformed += block.list.fields.map(\.isMalformed)
    }
    #expect(malformed == [true, true, true, true, true, false])
  }

  @Test("8.2.3: Repeated names stay apart and in order")
  func repeatedNames() throws {
    let peer = try Peer()
    try peer.send { $0.headers([":path": "/", "cookie": "b", "x": "", "cookie": "a"], on: 1) }
    #expect(
      peer.told == [
        .request(1, [":path": "/", "cookie": "b", "x": "", "cookie": "a"], isEnd: false)
      ]
    )
  }
}
