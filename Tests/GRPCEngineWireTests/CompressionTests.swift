import GRPCEngineWire
import NIOCore
import Testing

struct CompressionTests {
  static let encodings: [CompressionAlgorithm] = [.deflate, .gzip]

  @Test("Names are those of grpc-encoding, and no others are known")
  func names() {
    #expect(CompressionAlgorithm.allCases.map(\.name) == ["identity", "deflate", "gzip"])
    for algorithm in CompressionAlgorithm.allCases {
      #expect(CompressionAlgorithm(name: algorithm.name) == algorithm)
    }
    for name in ["", "zstd", "GZIP", "gzip "] {
      #expect(CompressionAlgorithm(name: name) == nil)
    }
    let accepted = CompressionAlgorithm.allCases.map(\.name).joined(separator: ", ")
    #expect(CompressionAlgorithm.acceptEncoding == accepted)
  }

  @Test(
    "A compressed message comes back",
    arguments: encodings,
    [0, 1, 100, 511, 512, 513, 65_536, 1_000_003]
  )
  func roundTrips(algorithm: CompressionAlgorithm, length: Int) throws {
    let message = noise(length)
    let compressed = try Compression.compress(message, algorithm)
    #expect(
      try Compression.decompress(compressed, algorithm, maximumLength: .max) == message
    )
  }

  @Test("Repetition gets shorter", arguments: encodings)
  func compresses(algorithm: CompressionAlgorithm) throws {
    let message = ByteBuffer(repeating: 7, count: 100_000)
    #expect(try Compression.compress(message, algorithm).readableBytes < 1000)
  }

  @Test("Only the readable part of a buffer is compressed", arguments: encodings)
  func slices(algorithm: CompressionAlgorithm) throws {
    var message = ByteBuffer(string: "--payload--")
    message.moveReaderIndex(forwardBy: 2)
    message.moveWriterIndex(to: message.writerIndex - 2)
    var compressed = ByteBuffer(string: "++")
    compressed.writeImmutableBuffer(try Compression.compress(message, algorithm))
    compressed.moveReaderIndex(forwardBy: 2)
    let output = try Compression.decompress(compressed, algorithm, maximumLength: .max)
    #expect(String(buffer: output) == "payload")
  }

  @Test("Identity leaves a message as it is, and a compressed flag with it is an error")
  func identity() throws {
    let message = ByteBuffer(string: "hi")
    #expect(try Compression.compress(message, .identity) == message)
    #expect(throws: MessageCodecError(.compressedWithoutEncoding)) {
      try Compression.decompress(message, .identity, maximumLength: .max)
    }
  }

  @Test("The formats are those of other implementations")
  func knownBytes() throws {
    // `zlib.compress(b"grpc")` and `gzip.compress(b"grpc", mtime=0)` of CPython.
    let deflated: [UInt8] = [120, 156, 75, 47, 42, 72, 6, 0, 4, 57, 1, 173]
    let gzipped: [UInt8] = [
      31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 75, 47, 42, 72, 6, 0, 140, 229, 68, 43, 4, 0, 0, 0,
    ]
    for (algorithm, bytes) in [(CompressionAlgorithm.deflate, deflated), (.gzip, gzipped)] {
      let output = try Compression.decompress(
        ByteBuffer(bytes: bytes),
        algorithm,
        maximumLength: 4
      )
      #expect(String(buffer: output) == "grpc")
    }
  }

  @Test(
    "A message at the limit passes, one past it does not",
    arguments: encodings,
    [0, 1, 1000, 70_000]
  )
  func limits(algorithm: CompressionAlgorithm, length: Int) throws {
    let compressed = try Compression.compress(noise(length), algorithm)
    let output = try Compression.decompress(compressed, algorithm, maximumLength: length)
    #expect(output.readableBytes == length)
    if length == 0 { return }
    #expect(throws: MessageCodecError(.decompressedTooLarge(limit: length - 1))) {
      try Compression.decompress(compressed, algorithm, maximumLength: length - 1)
    }
  }

  @Test(
    "A bomb is given up at the limit, without room for what it would become",
    arguments: encodings
  )
  func bombs(algorithm: CompressionAlgorithm) throws {
    let bomb = try Compression.compress(ByteBuffer(repeating: 0, count: 64 << 20), algorithm)
    #expect(bomb.readableBytes < 100_000)
    #expect(throws: MessageCodecError(.decompressedTooLarge(limit: 1 << 20))) {
      try Compression.decompress(bomb, algorithm, maximumLength: 1 << 20)
    }
    #expect(throws: MessageCodecError(.decompressedTooLarge(limit: 0))) {
      try Compression.decompress(bomb, algorithm, maximumLength: -1)
    }
  }

  @Test("Every truncation is an error, but for no bytes at all", arguments: encodings)
  func truncations(algorithm: CompressionAlgorithm) throws {
    let compressed = try Compression.compress(noise(40), algorithm)
    for length in 1..<compressed.readableBytes {
      let part = try #require(compressed.getSlice(at: 0, length: length))
      #expect(throws: MessageCodecError.self, "first \(length) bytes") {
        try Compression.decompress(part, algorithm, maximumLength: .max)
      }
    }
    let nothing = try Compression.decompress(ByteBuffer(), algorithm, maximumLength: 0)
    #expect(nothing.readableBytes == 0)
  }

  @Test("Junk, the other format, and bytes after the end are errors", arguments: encodings)
  func corruption(algorithm: CompressionAlgorithm) throws {
    let other: CompressionAlgorithm = algorithm == .gzip ? .deflate : .gzip
    #expect(throws: MessageCodecError(.corrupt("zlib error"))) {
      try Compression.decompress(ByteBuffer(string: "junk"), algorithm, maximumLength: .max)
    }
    #expect(throws: MessageCodecError(.corrupt("zlib error"))) {
      let compressed = try Compression.compress(noise(9), other)
      return try Compression.decompress(compressed, algorithm, maximumLength: .max)
    }
    var twice = try Compression.compress(noise(9), algorithm)
    twice.writeImmutableBuffer(twice)
    #expect(throws: MessageCodecError(.corrupt("not all input consumed"))) {
      try Compression.decompress(twice, algorithm, maximumLength: .max)
    }
    var flipped = try Compression.compress(noise(40), algorithm)
    let last = flipped.writerIndex - 5
    flipped.setInteger(~(try #require(flipped.getInteger(at: last, as: UInt8.self))), at: last)
    #expect(throws: MessageCodecError(.corrupt("zlib error"))) {
      try Compression.decompress(flipped, algorithm, maximumLength: .max)
    }
  }

  @Test("Errors have the codes and words of grpc's own servers")
  func statuses() {
    let expected: [(MessageCodecError.Reason, StatusCode, String)] = [
      (
        .tooLarge(length: 5_242_880, limit: 4_194_304), .resourceExhausted,
        "Received message larger than max (5242880 vs. 4194304)"
      ),
      (.decompressedTooLarge(limit: 9), .resourceExhausted, "Decompressed message larger than max"),
      (.badFlag(2), .internalError, "Bad GRPC frame type 0x02"),
      (.badFlag(255), .internalError, "Bad GRPC frame type 0xff"),
      (
        .compressedWithoutEncoding, .internalError,
        "Compression bit set but no encoding configured"
      ),
      (.corrupt("data error"), .internalError, "Decompression failed due to data error"),
      (.compressionFailed, .internalError, "Compression failed"),
    ]
    for (reason, code, details) in expected {
      #expect(MessageCodecError(reason).status == Status(code: code, details: details))
    }
  }

  /// Bytes that do not compress, the same in every run.
  private func noise(_ length: Int) -> ByteBuffer {
    var state: UInt64 = 0x9e37_79b9_7f4a_7c15
    let bytes = (0..<length).map { _ -> UInt8 in
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return UInt8(truncatingIfNeeded: state)
    }
    return ByteBuffer(bytes: bytes)
  }
}
