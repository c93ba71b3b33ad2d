import GRPCEngineTransport
import Testing

struct HandshakeReaderTests {
  private static func record(_ type: UInt8, _ contents: [UInt8]) -> [UInt8] {
    [type, 3, 3, UInt8(contents.count >> 8), UInt8(contents.count & 255)] + contents
  }

  private static func message(_ type: UInt8, _ body: [UInt8]) -> [UInt8] {
    [type, 0, UInt8(body.count >> 8), UInt8(body.count & 255)] + body
  }

  private static func field(_ type: UInt8, _ contents: [UInt8]) -> [UInt8] {
    [0, type, 0, UInt8(contents.count)] + contents
  }

  /// A client hello that asks for a host.
  private static func clientHello(_ host: String) -> [UInt8] {
    let name = Array(host.utf8)
    let list = [0, 0, UInt8(name.count)] + name
    let fields = Self.field(10, [0, 2, 0, 29]) + Self.field(0, [0, UInt8(list.count)] + list)
    let random = [UInt8](repeating: 7, count: 32)
    let start: [UInt8] = [3, 3] + random + [0, 0, 2, 0x13, 1, 1, 0]
    return Self.message(1, start + [0, UInt8(fields.count)] + fields)
  }

  private static func serverHello(_ fields: [UInt8], random: [UInt8]? = nil) -> [UInt8] {
    let random = random ?? [UInt8](repeating: 7, count: 32)
    let start: [UInt8] = [3, 3] + random + [0, 0x13, 1, 0]
    return Self.message(2, start + [0, UInt8(fields.count)] + fields)
  }

  private static let version13 = Self.field(43, [3, 4])
  private static let certificate = Self.message(11, [1, 2, 3])

  /// Tells a reader in pieces, as a socket would.
  private static func read(client: [UInt8] = [], server: [UInt8] = [], piece: Int)
    -> HandshakeReader
  {
    var reader = HandshakeReader()
    for start in stride(from: 0, to: client.count, by: piece) {
      reader.receive(client[start..<min(start + piece, client.count)])
    }
    for start in stride(from: 0, to: server.count, by: piece) {
      reader.send(server[start..<min(start + piece, server.count)])
    }
    return reader
  }

  @Test("The host's name is read however the hello is cut", arguments: [1, 2, 5, 7, 1000])
  func serverName(piece: Int) {
    let hello = Self.clientHello("server.test")
    let halves = Self.record(22, Array(hello[..<20])) + Self.record(22, Array(hello[20...]))
    for records in [Self.record(22, hello), halves] {
      #expect(Self.read(client: records, piece: piece).serverName == "server.test")
    }
    #expect(
      Self.read(client: Self.record(22, Self.clientHello("")), piece: piece).serverName == nil
    )
  }

  @Test("TLS 1.3: the share's group, and whether a session is resumed", arguments: [1, 6, 1000])
  func tls13(piece: Int) {
    let fields = Self.version13 + Self.field(51, [0x11, 0xEC, 0, 0])
    var reader = Self.read(server: Self.record(22, Self.serverHello(fields)), piece: piece)
    #expect(reader.isDone && !reader.isResumed && reader.keyExchangeGroup == "X25519MLKEM768")
    let resumed = Self.serverHello(fields + Self.field(41, [0, 0]))
    reader = Self.read(server: Self.record(22, resumed), piece: piece)
    #expect(reader.isDone && reader.isResumed)
  }

  @Test("TLS 1.3: the hello after a plea to try again counts", arguments: [1, 6, 1000])
  func retry(piece: Int) {
    let plea: [UInt8] = [
      0xCF, 0x21, 0xAD, 0x74, 0xE5, 0x9A, 0x61, 0x11, 0xBE, 0x1D, 0x8C, 0x02, 0x1E, 0x65, 0xB8,
      0x91, 0xC2, 0xA2, 0x11, 0x16, 0x7A, 0xBB, 0x8C, 0x5E, 0x07, 0x9E, 0x09, 0xE2, 0xC8, 0xA8,
      0x33, 0x9C,
    ]
    let first = Self.serverHello(Self.version13 + Self.field(51, [0, 0x18]), random: plea)
    let second = Self.serverHello(Self.version13 + Self.field(51, [0, 0x18, 0, 0]))
    let bytes = Self.record(22, first) + Self.record(20, [1]) + Self.record(22, second)
    let reader = Self.read(server: bytes, piece: piece)
    #expect(reader.isDone && reader.keyExchangeGroup == "secp384r1")
  }

  @Test("TLS 1.2: the group is in the key exchange", arguments: [1, 6, 1000])
  func tls12(piece: Int) {
    let keys = Self.message(12, [3, 0, 0x17, 0])
    let flight = Self.serverHello([]) + Self.certificate + keys + Self.message(14, [])
    var reader = Self.read(server: Self.record(22, flight), piece: piece)
    #expect(reader.isDone && !reader.isResumed && reader.keyExchangeGroup == "prime256v1")
    // With finite fields (RFC 5246 section 7.4.3) there is none.
    let finite = Self.serverHello([]) + Self.certificate + Self.message(12, [0, 8, 1, 2])
    reader = Self.read(server: Self.record(22, finite), piece: piece)
    #expect(reader.isDone && reader.keyExchangeGroup == nil)
  }

  @Test("TLS 1.2: neither certificate nor keys is a session resumed", arguments: [1, 6, 1000])
  func resumed12(piece: Int) {
    let ticket = Self.serverHello([]) + Self.message(4, [1, 2])
    let encrypted = Self.record(20, [1]) + Self.record(22, [9, 9, 9, 9, 9, 9])
    for flight in [ticket, Self.serverHello([])] {
      let reader = Self.read(server: Self.record(22, flight) + encrypted, piece: piece)
      #expect(reader.isDone && reader.isResumed && reader.keyExchangeGroup == nil)
    }
  }

  @Test("What is no handshake is read to nothing, and costs no more than a bound")
  func nonsense() {
    var generator = SystemRandomNumberGenerator()
    let good = Self.record(22, Self.clientHello("server.test"))
    for _ in 0..<20_000 {
      var bytes = good
      for _ in 0..<Int.random(in: 1...4, using: &generator) {
        bytes[Int.random(in: 0..<bytes.count, using: &generator)] = .random(in: 0...255)
      }
      bytes.removeLast(Int.random(in: 0..<bytes.count, using: &generator))
      var reader = HandshakeReader()
      reader.receive(bytes)
      reader.send(bytes)
    }
    var reader = HandshakeReader()
    for _ in 0..<100 { reader.send(Self.record(22, [UInt8](repeating: 255, count: 10_000))) }
    #expect(reader.isDone)
  }
}
