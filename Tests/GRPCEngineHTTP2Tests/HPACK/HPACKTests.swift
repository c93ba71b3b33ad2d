import GRPCEngineTesting
import NIOCore
import NIOHPACK
import Testing

@testable import GRPCEngineHTTP2

typealias Decoder = GRPCEngineHTTP2.HPACKDecoder
typealias Encoder = GRPCEngineHTTP2.HPACKEncoder
typealias DecodingError = GRPCEngineHTTP2.HPACKError

extension ByteBuffer {
  /// Bytes in hexadecimal, blanks between them.
  init(hex: String) {
    let digits = hex.utf8.compactMap { Character(UnicodeScalar($0)).hexDigitValue }
    self.init(
      bytes: stride(from: 0, to: digits.count - 1, by: 2).map {
        UInt8(digits[$0] << 4 | digits[$0 + 1])
      }
    )
  }
}

extension Decoder {
  mutating func list(_ block: ByteBuffer) throws -> HeaderList {
    try self.decode(block, maximumSize: .max).list
  }

  /// What is in the dynamic table, the newest first.
  var table: [HeaderField] {
    var (fields, index) = ([HeaderField](), 62)
    while true {
      var (copy, block) = (self, ByteBuffer())
      // An indexed field, its number spelled out.
      if index < 127 {
        block.writeInteger(UInt8(0x80 | index))
      } else {
        block.writeInteger(UInt8(0xFF))
        var rest = index - 127
        while rest >= 128 {
          block.writeInteger(UInt8(rest & 0x7F | 0x80))
          rest >>= 7
        }
        block.writeInteger(UInt8(rest))
      }
      guard let field = try? copy.list(block).fields.first else { return fields }
      fields.append(field)
      index += 1
    }
  }
}

/// RFC 7541, by its own examples, by the limits of what a peer may write, and against another implementation.
struct HPACKTests {
  // MARK: Appendix C

  private struct Example {
    let block: String
    let fields: HeaderList
    let table: HeaderList
    let size: Int
  }

  private static let date = "Mon, 21 Oct 2013 20:13:21 GMT"
  private static let laterDate = "Mon, 21 Oct 2013 20:13:22 GMT"
  private static let site = "https://www.example.com"
  private static let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"

  private static let requests: [(HeaderList, HeaderList, Int)] = [
    (
      [
        ":method": "GET", ":scheme": "http", ":path": "/", ":authority": "www.example.com",
      ],
      [":authority": "www.example.com"], 57
    ),
    (
      [
        ":method": "GET", ":scheme": "http", ":path": "/", ":authority": "www.example.com",
        "cache-control": "no-cache",
      ],
      ["cache-control": "no-cache", ":authority": "www.example.com"], 110
    ),
    (
      [
        ":method": "GET", ":scheme": "https", ":path": "/index.html",
        ":authority": "www.example.com", "custom-key": "custom-value",
      ],
      [
        "custom-key": "custom-value", "cache-control": "no-cache",
        ":authority": "www.example.com",
      ], 164
    ),
  ]

  private static let responses: [(HeaderList, HeaderList, Int)] = [
    (
      [":status": "302", "cache-control": "private", "date": date, "location": site],
      ["location": site, "date": date, "cache-control": "private", ":status": "302"], 222
    ),
    (
      [":status": "307", "cache-control": "private", "date": date, "location": site],
      [":status": "307", "location": site, "date": date, "cache-control": "private"], 222
    ),
    (
      [
        ":status": "200", "cache-control": "private", "date": laterDate, "location": site,
        "content-encoding": "gzip", "set-cookie": cookie,
      ],
      ["set-cookie": cookie, "content-encoding": "gzip", "date": laterDate], 215
    ),
  ]

  /// What is decoded one after the other, and how large the table may be.
  private static let sequences: [(String, [String], [(HeaderList, HeaderList, Int)], Int)] = [
    (
      "C.2.1", ["400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572"],
      [(["custom-key": "custom-header"], ["custom-key": "custom-header"], 55)], 4096
    ),
    (
      "C.2.2", ["040c 2f73 616d 706c 652f 7061 7468"], [([":path": "/sample/path"], [:], 0)],
      4096
    ),
    (
      "C.2.3", ["1008 7061 7373 776f 7264 0673 6563 7265 74"],
      [(["password": "secret"], [:], 0)], 4096
    ),
    ("C.2.4", ["82"], [([":method": "GET"], [:], 0)], 4096),
    (
      "C.3",
      [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
      ], requests, 4096
    ),
    (
      "C.4",
      [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
      ], requests, 4096
    ),
    (
      "C.5",
      [
        """
        4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a
        3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d
        """,
        "4803 3330 37c1 c0bf",
        """
        88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04
        677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49
        553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31
        """,
      ], responses, 256
    ),
    (
      "C.6",
      [
        """
        4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e
        919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3
        """,
        "4883 640e ffc1 c0bf",
        """
        88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7
        821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed
        4ee5 b106 3d50 07
        """,
      ], responses, 256
    ),
  ]

  @Test("The examples of appendix C are decoded", arguments: sequences.indices)
  func examples(index: Int) throws {
    let (name, blocks, expected, size) = Self.sequences[index]
    var decoder = Decoder(maximumTableSize: size)
    for (block, (fields, table, tableSize)) in zip(blocks, expected) {
      let decoded = try decoder.decode(ByteBuffer(hex: block), maximumSize: .max)
      #expect(decoded.list == fields, "\(name)")
      #expect(decoded.size == fields.size, "\(name)")
      #expect(decoder.table == table.fields, "\(name)")
      #expect(decoder.table.reduce(0) { $0 + $1.size } == tableSize, "\(name)")
    }
  }

  /// A size update reads an integer of five bits, and is refused above a limit: so the value is told.
  private static let integers: [(String, Int)] = [
    ("2a", 10), ("3f9a0a", 1337), ("20", 0), ("3e", 30), ("3f00", 31), ("3f60", 127),
    ("3f8001", 159), ("3fe11f", 4096), ("3f80 8080 8000", 31), ("3fe1 ffff ff07", 0x8000_0000),
    ("3fff ffff ff7f", 31 + (1 << 35) - 1),
  ]

  @Test("Integers (section 5.1, examples C.1.1 and C.1.2)", arguments: integers)
  func integer(hex: String, value: Int) throws {
    var decoder = Decoder(maximumTableSize: value)
    #expect(try decoder.list(ByteBuffer(hex: hex)) == [:])
    if value > 0 {
      decoder = Decoder(maximumTableSize: value - 1)
      #expect(throws: DecodingError.badTableSize) { try decoder.list(ByteBuffer(hex: hex)) }
    }
  }

  @Test("The static table is appendix A's", arguments: 1...61)
  func staticTable(index: Int) throws {
    var (ours, theirs) = (Decoder(), NIOHPACK.HPACKDecoder(allocator: ByteBufferAllocator()))
    var block = ByteBuffer(bytes: [UInt8(0x80 | index)])
    let list = try ours.list(block)
    let expected = try theirs.decodeHeaders(from: &block)
    #expect(list == HeaderList(expected.map { HeaderField($0.name, $0.value) }))
  }

  // MARK: Malformed blocks

  private static let malformed: [(String, DecodingError)] = [
    ("80", .badIndex), ("be", .badIndex), ("ff80 01", .badIndex), ("ffff ffff ff7f", .badIndex),
    ("7e00", .badIndex), ("7f00 00", .badIndex), ("0f2f 00", .badIndex), ("1f2f 00", .badIndex),
    ("ff", .truncated), ("ff80", .truncated), ("3f", .truncated), ("40", .truncated),
    ("00", .truncated), ("10", .truncated), ("04", .truncated), ("0401", .truncated),
    ("4001", .truncated), ("4001 61", .truncated), ("4001 6101", .truncated),
    ("4001 6181", .truncated), ("007f", .truncated), ("007f ffff ffff 7f", .truncated),
    ("0f", .truncated), ("0f80", .truncated),
    ("ff80 8080 8080 00", .integerTooLarge), ("ffff ffff ffff ffff ffff 7f", .integerTooLarge),
    ("3f80 8080 8080 00", .integerTooLarge), ("007f ffff ffff ffff ffff", .integerTooLarge),
    ("3fe2 1f", .badTableSize), ("3fff ffff ff7f", .badTableSize), ("8220", .badTableSize),
    ("2082 20", .badTableSize), ("0001 6100 20", .badTableSize),
    // Huffman: a zero as padding, a whole byte of padding, the end of the string, alone and amid it.
    ("0481 1e", .badHuffmanCode), ("0481 00", .badHuffmanCode), ("0481 ff", .badHuffmanCode),
    ("0482 07ff", .badHuffmanCode), ("0484 ffff ffff", .badHuffmanCode),
    ("0484 ffff fffc", .badHuffmanCode), ("0486 1fff ffff fc1f", .badHuffmanCode),
    ("0081 ff00", .badHuffmanCode),
  ]

  @Test("A malformed block is told for what it is", arguments: malformed)
  func malformedBlock(hex: String, error: DecodingError) {
    var decoder = Decoder()
    #expect(throws: error) { try decoder.list(ByteBuffer(hex: hex)) }
  }

  @Test("What is cut off anywhere but between two fields is no block")
  func cut() throws {
    let block = ByteBuffer(hex: "2082 5f03 6162 6340 0161 0162 0001 6301 6404 012f")
    // Behind the size update, and behind each field but the last.
    let whole: Set<Int> = [0, 1, 2, 7, 12, 17, 20]
    for length in 0...block.readableBytes {
      var decoder = Decoder()
      let part = try #require(block.getSlice(at: 0, length: length))
      let isWhole = (try? decoder.list(part)) != nil
      #expect(isWhole == whole.contains(length), "\(length)")
    }
  }

  // MARK: The table

  @Test("4.2: Sizes may change before the first field, down and up, and within the limit")
  func sizeUpdates() throws {
    var decoder = Decoder()
    _ = try decoder.list(ByteBuffer(hex: "4001 6101 62 4001 6301 64"))
    #expect(decoder.table == [HeaderField("c", "d"), HeaderField("a", "b")])
    // 34 + 34 bytes.
    #expect(try decoder.list(ByteBuffer(hex: "3f25 be bf")) == ["c": "d", "a": "b"])
    #expect(try decoder.list(ByteBuffer(hex: "3f24 be")) == ["c": "d"], "67 bytes")
    #expect(decoder.table == [HeaderField("c", "d")])
    #expect(try decoder.list(ByteBuffer(hex: "20 3f e11f")) == [:])
    #expect(decoder.table == [])
    #expect(try decoder.list(ByteBuffer(hex: "4001 6101 62 be")) == ["a": "b", "a": "b"])
  }

  @Test("4.4: A field that is too large empties the table, and is still a field")
  func eviction() throws {
    var decoder = Decoder(maximumTableSize: 100)
    for name in ["61", "63", "65"] { _ = try decoder.list(ByteBuffer(hex: "4001 \(name) 0162")) }
    #expect(decoder.table == [HeaderField("e", "b"), HeaderField("c", "b")])
    // The name of what it pushes out.
    #expect(try decoder.list(ByteBuffer(hex: "7f00 0178")) == ["c": "x"])
    #expect(decoder.table == [HeaderField("c", "x"), HeaderField("e", "b")])
    var block = ByteBuffer(hex: "4001 61 45")
    block.writeRepeatingByte(0x78, count: 0x45)
    #expect(try decoder.list(block).fields.first?.value.utf8.count == 0x45)
    #expect(decoder.table == [])
    _ = try decoder.list(ByteBuffer(hex: "4001 610162"))
    block = ByteBuffer(hex: "4001 61 43")
    block.writeRepeatingByte(0x78, count: 0x43)
    _ = try decoder.list(block)
    #expect(decoder.table.map(\.size) == [100], "one that just fits")
  }

  @Test("A block that comes again means what the table says then")
  func repeatedBlock() throws {
    var decoder = Decoder()
    _ = try decoder.list(ByteBuffer(hex: "4001 6101 62"))
    for _ in 0..<3 { #expect(try decoder.list(ByteBuffer(hex: "be")) == ["a": "b"]) }
    _ = try decoder.list(ByteBuffer(hex: "4001 6101 63"))
    #expect(try decoder.list(ByteBuffer(hex: "be")) == ["a": "c"])
    // The same bytes add another field each time.
    for count in 3...6 {
      _ = try decoder.list(ByteBuffer(hex: "4001 6101 64"))
      #expect(decoder.table.count == count)
    }
    _ = try decoder.list(ByteBuffer(hex: "20"))
    #expect(throws: DecodingError.badIndex) { try decoder.list(ByteBuffer(hex: "be")) }
  }

  @Test("A repeated block is cut to the limit as the first one is")
  func repeatedLargeBlock() throws {
    var decoder = Decoder()
    let block = ByteBuffer(hex: "0001 6101 62 0001 6101 63")
    for _ in 0..<3 {
      let decoded = try decoder.decode(block, maximumSize: 50)
      #expect(decoded.list == ["a": "b"])
      #expect(decoded.size == 68)
    }
  }

  // MARK: Huffman

  private static func decode(_ bytes: [UInt8]) throws -> [UInt8] {
    var output: [UInt8] = []
    try Huffman.decode(bytes.span, into: &output)
    return output
  }

  private static func encode(_ bytes: [UInt8]) -> [UInt8] {
    var output = ByteBuffer()
    bytes.withUnsafeBufferPointer { bytes in
      Huffman.encode(bytes, into: &output)
      #expect(Huffman.encodedLength(bytes) == output.readableBytes)
    }
    return Array(output.readableBytesView)
  }

  @Test("Appendix B's code is complete, and of each length its codes count up")
  func code() {
    let symbols = HuffmanCode.symbols
    #expect(symbols.count == 257)
    // It is canonical: so its lengths make the codes, and a wrong one makes the whole wrong.
    let order = symbols.indices.sorted { (symbols[$0].length, $0) < (symbols[$1].length, $1) }
    var (next, length) = (UInt64(0), 5)
    for symbol in order {
      next <<= UInt64(Int(symbols[symbol].length) - length)
      length = Int(symbols[symbol].length)
      #expect(UInt64(symbols[symbol].code) == next, "\(symbol)")
      next += 1
    }
    #expect(next == 1 << 30, "every bit pattern means something")
    #expect(symbols[HuffmanCode.endOfString] == (0x3fff_ffff, 30))
    #expect(symbols[0xFF] == (0x3ff_ffee, 26))
    #expect(symbols[0x30] == (0, 5))
  }

  @Test("Every byte is encoded and decoded, between any others")
  func huffman() throws {
    for byte in UInt8.min...UInt8.max {
      for neighbour in [UInt8(0x30), 0x00, 0x7A, 0xFF] {
        for count in 0..<9 {
          let bytes = Array(repeating: neighbour, count: count) + [byte, neighbour]
          #expect(try Self.decode(Self.encode(bytes)) == bytes)
        }
      }
      #expect(try Self.decode(Self.encode([byte])) == [byte])
    }
  }

  @Test("Strings come as another implementation encodes them, and go as it decodes them")
  func huffmanAgainstNIO() throws {
    var random = SplitMix(seed: 5)
    var ours = Encoder()
    var decoder = Decoder()
    var theirDecoder = NIOHPACK.HPACKDecoder(allocator: ByteBufferAllocator())
    theirDecoder.maxHeaderListSize = 1 << 20
    var writer = FrameWriter()
    for scalar in [0x80, 0x7FF, 0x800, 0xFFFD, 0x10000, 0x10FFFF] + Array(0..<0x80) {
      guard let scalar = UnicodeScalar(scalar) else { continue }
      let zeros = String(repeating: "0", count: Int.random(in: 40..<60, using: &random))
      for value in [String(Character(scalar)), zeros + String(Character(scalar)), zeros] {
        #expect(try decoder.list(writer.block(["a": value])) == ["a": value])
        var block = ByteBuffer()
        ours.encode(["a": value], into: &block)
        #expect(try theirDecoder.decodeHeaders(from: &block) == ["a": value])
      }
    }
  }

  @Test("5.2: Padding is less than a byte of ones")
  func huffmanEndings() throws {
    // Of every length up to eight bits: all ones end a string, and whatever else there is does not.
    for prefix in ["", "0", "00", "z", "a!"] {
      let bytes = Array(prefix.utf8)
      let code = bytes.flatMap { byte in
        let (code, length) = HuffmanCode.symbols[Int(byte)]
        return (0..<Int(length)).reversed().map { UInt8(truncatingIfNeeded: code >> $0 & 1) }
      }
      let missing = (8 - code.count % 8) % 8
      for count in [missing, missing + 8] where count > 0 {
        for tail in 0..<(1 << min(count, 15)) {
          let padding = (0..<count).reversed().map { UInt8(truncatingIfNeeded: tail >> $0 & 1) }
          let bits = code + padding
          let encoded = stride(from: 0, to: bits.count, by: 8).map { start in
            bits[start..<start + 8].reduce(0) { $0 << 1 | $1 }
          }
          let isPadding = padding.allSatisfy { $0 == 1 }
          let decoded = try? Self.decode(encoded)
          if isPadding {
            #expect(decoded == (count < 8 ? bytes : nil), "\(prefix) \(count)")
          } else if let decoded {
            // Other symbols, behind which is a padding again.
            #expect(decoded.count > bytes.count && Self.encode(decoded) == encoded)
          }
        }
      }
    }
    #expect(try Self.decode([]) == [])
  }

  @Test("What is decoded at all is the one encoding of what it means")
  func huffmanGarbage() throws {
    var random = SplitMix(seed: 6)
    for _ in 0..<20_000 {
      let count = Int.random(in: 0..<12, using: &random)
      var bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
      if Bool.random(using: &random) { bytes.append(contentsOf: [0xFF, 0xFF, 0xFF]) }
      guard let decoded = try? Self.decode(bytes) else { continue }
      #expect(Self.encode(decoded) == bytes)
    }
  }
}
