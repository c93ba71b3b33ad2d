import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

@testable import GRPCEngineHTTP2

/// Header blocks against another implementation, and blocks of garbage.
struct HPACKPropertyTests {
  private static let names = [
    ":status", ":path", ":method", "content-type", "grpc-status", "grpc-message", "cookie", "date",
    "x", "a-rather-long-name-of-metadata-bin", "user-agent", "te", "accept-encoding",
  ]
  private static let values = [
    "", "200", "404", "/", "POST", "application/grpc", "0", "gzip, deflate", "trailers",
    "a value that is as long as one of a tracing header, 0123456789abcdef", "\u{1}\u{2}", "ä€😀",
  ]

  private static func field(_ random: inout SplitMix) -> (String, String) {
    let name = Self.names.randomElement(using: &random) ?? ""
    switch Int.random(in: 0..<4, using: &random) {
    case 0: return (name, String(random.next()))
    case 1:
      let count = Int.random(in: 0..<300, using: &random)
      let letter = Self.values.randomElement(using: &random) ?? ""
      return (name, String(repeating: letter, count: count / max(1, letter.utf8.count)))
    default: return (name, Self.values.randomElement(using: &random) ?? "")
    }
  }

  @Test(
    "What this encoder writes is what was meant, whatever tables its peer allows",
    arguments: 0..<8
  )
  func encoder(seed: UInt64) throws {
    var random = SplitMix(seed: seed)
    for _ in 0..<20 {
      var (ours, theirs) = (Encoder(), NIOHPACK.HPACKDecoder(allocator: ByteBufferAllocator()))
      var repeated: [HeaderField] = []
      for _ in 0..<30 {
        if Int.random(in: 0..<4, using: &random) == 0 {
          var sizes = [0, 1, 33, 64, 100, 500, 4095, 4096, 4097, 1 << 20, 0xFFFF_FFFF]
          sizes.shuffle(using: &random)
          for size in sizes.prefix(Int.random(in: 1...3, using: &random)) {
            ours.limitTable(to: size)
            // It refuses every update past it.
            theirs.maxDynamicTableLength = min(size, 1 << 20)
          }
        }
        var list = HeaderList()
        for _ in 0..<Int.random(in: 0..<8, using: &random) {
          if let known = repeated.randomElement(using: &random), Bool.random(using: &random) {
            list.append(known)
          } else {
            let (name, value) = Self.field(&random)
            let field = HeaderField(name, value, isRepeated: Bool.random(using: &random))
            repeated.append(field)
            list.append(field)
          }
        }
        var block = ByteBuffer()
        ours.encode(list, into: &block)
        let decoded = try theirs.decodeHeaders(from: &block)
        #expect(HeaderList(decoded.map { HeaderField($0.name, $0.value) }) == list)
      }
    }
  }

  @Test("What another encoder writes is understood, with all its ways of writing", arguments: 0..<8)
  func decoder(seed: UInt64) throws {
    var random = SplitMix(seed: seed)
    for _ in 0..<20 {
      let largest = [0, 40, 100, 256, 4096, 10_000].randomElement(using: &random) ?? 0
      var ours = Decoder(maximumTableSize: largest)
      var theirs = NIOHPACK.HPACKEncoder(
        allocator: ByteBufferAllocator(),
        maxDynamicTableSize: largest
      )
      var known: [(String, String)] = []
      for _ in 0..<30 {
        if Int.random(in: 0..<4, using: &random) == 0 {
          try theirs.setDynamicTableSize(Int.random(in: 0...largest, using: &random))
        }
        var list = HeaderList()
        try theirs.beginEncoding(allocator: ByteBufferAllocator())
        for _ in 0..<Int.random(in: 0..<8, using: &random) {
          var field = Self.field(&random)
          if let again = known.randomElement(using: &random), Bool.random(using: &random) {
            field = again
          }
          known.append(field)
          list.append(field.0, field.1)
          switch Int.random(in: 0..<4, using: &random) {
          case 0: try theirs.appendNonIndexed(header: field.0, value: field.1)
          case 1: try theirs.appendNeverIndexed(header: field.0, value: field.1)
          default: try theirs.append(header: field.0, value: field.1)
          }
        }
        var block = ByteBuffer()
        block.writeImmutableBuffer(try theirs.endEncoding())
        // Behind other bytes, as blocks are in a read buffer.
        var shifted = ByteBuffer(string: "abc")
        shifted.writeBuffer(&block)
        shifted.moveReaderIndex(forwardBy: 3)
        let decoded = try ours.decode(shifted, maximumSize: .max)
        #expect(decoded.list == list)
        #expect(decoded.size == list.size)
      }
      #expect(ours.table.reduce(0) { $0 + $1.size } <= largest)
    }
  }

  @Test("Garbage is decoded or refused", arguments: 0..<4)
  func garbage(seed: UInt64) throws {
    var random = SplitMix(seed: 100 + seed)
    var (refused, taken) = (0, 0)
    var decoder = Decoder()
    for _ in 0..<5000 {
      var block = ByteBuffer()
      for _ in 0..<Int.random(in: 0..<20, using: &random) {
        // Bytes that begin something, and small numbers that may be its lengths.
        switch Int.random(in: 0..<4, using: &random) {
        case 0: block.writeInteger(UInt8.random(in: 0...255, using: &random))
        case 1: block.writeInteger(UInt8.random(in: 0...5, using: &random))
        case 2: block.writeInteger(UInt8.random(in: 0x3F...0x45, using: &random))
        default: block.writeInteger(UInt8.random(in: 0x80...0xBF, using: &random))
        }
      }
      do {
        let decoded = try decoder.decode(block, maximumSize: 200)
        taken += 1
        #expect(decoded.list.size <= 200 && decoded.list.size <= decoded.size)
      } catch {
        refused += 1
        decoder = Decoder(maximumTableSize: Int.random(in: 0..<300, using: &random))
      }
    }
    #expect(refused > 300 && taken > 300)
  }
}
