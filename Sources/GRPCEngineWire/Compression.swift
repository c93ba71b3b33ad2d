internal import CGRPCEngineZlib
public import NIOCore

/// A message encoding that both sides of a call may name in `grpc-encoding`.
public enum CompressionAlgorithm: Hashable, Sendable, CaseIterable {
  case identity
  /// The zlib format of RFC 1950, which HTTP calls deflate.
  case deflate
  case gzip

  /// - Returns: `nil` for a name that is not supported.
  public init?(name: String) {
    // Before it is compared: with the meaning of a long one that takes its time.
    guard name.utf8.count <= 8 else { return nil }
    switch name {
    case "identity": self = .identity
    case "deflate": self = .deflate
    case "gzip": self = .gzip
    default: return nil
    }
  }

  /// The name in `grpc-encoding`.
  public var name: String {
    switch self {
    case .identity: "identity"
    case .deflate: "deflate"
    case .gzip: "gzip"
    }
  }

  /// The value of `grpc-accept-encoding`.
  public static let acceptEncoding = "identity, deflate, gzip"

  /// zlib's window size (the largest), plus 16 where it shall read and write gzip.
  fileprivate var windowBits: Int32 { self == .gzip ? 15 + 16 : 15 }
}

/// Compresses and decompresses whole messages, as
/// [compression.md](https://github.com/grpc/grpc/blob/master/doc/compression.md) describes.
public enum Compression {
  /// - Returns: the compressed message, which may be longer than `message`; `message` itself for
  ///   `identity`.
  /// - Throws: ``MessageCodecError/Reason/compressionFailed``.
  public static func compress(
    _ message: ByteBuffer,
    _ algorithm: CompressionAlgorithm
  ) throws(MessageCodecError) -> ByteBuffer {
    if algorithm == .identity { return message }
    guard message.readableBytes <= longestMessage, let deflater = Deflater(algorithm) else {
      throw MessageCodecError(.compressionFailed)
    }
    let bound = deflater.bound(for: message.readableBytes)
    var output = ByteBuffer()
    let code = message.withUnsafeReadableBytes { input in
      deflater.setInput(input)
      var code = Z_OK
      output.writeWithUnsafeMutableBytes(minimumWritableBytes: bound) { room in
        deflater.setOutput(room)
        code = deflate(deflater.stream, Z_FINISH)
        return room.count - Int(deflater.stream.pointee.avail_out)
      }
      return code
    }
    guard code == Z_STREAM_END else { throw MessageCodecError(.compressionFailed) }
    return output
  }

  /// Decompresses a message whose prefix has the compressed flag set; call it for no other.
  ///
  /// The output is produced in steps and given up as soon as it passes `maximumLength`, so a short
  /// message that expands to gigabytes costs no more than the limit. As in grpc's own servers,
  /// nothing may follow the compressed data (a second gzip member included), and no bytes at all
  /// decompress to no bytes.
  ///
  /// - Parameter maximumLength: the longest output in bytes; `Int.max` for as much as a buffer holds.
  /// - Throws: ``MessageCodecError/Reason/compressedWithoutEncoding`` for `identity`,
  ///   ``MessageCodecError/Reason/decompressedTooLarge(limit:)`` and
  ///   ``MessageCodecError/Reason/corrupt(_:)``.
  public static func decompress(
    _ message: ByteBuffer,
    _ algorithm: CompressionAlgorithm,
    maximumLength: Int
  ) throws(MessageCodecError) -> ByteBuffer {
    if algorithm == .identity { throw MessageCodecError(.compressedWithoutEncoding) }
    if message.readableBytes == 0 { return message }
    guard let inflater = Inflater(algorithm) else {
      throw MessageCodecError(.corrupt("zlib error"))
    }
    let limit = max(0, min(maximumLength, longestMessage))
    var output = ByteBuffer()
    let reason = message.withUnsafeReadableBytes { input -> MessageCodecError.Reason? in
      inflater.setInput(input)
      var step = max(512, input.count * 4)
      while true {
        // One byte more than allowed tells a message at the limit from one past it.
        let allowed = limit + 1 - output.readableBytes
        var code = Z_OK
        output.writeWithUnsafeMutableBytes(minimumWritableBytes: min(step, allowed)) { room in
          let room = UnsafeMutableRawBufferPointer(rebasing: room.prefix(allowed))
          inflater.setOutput(room)
          code = inflate(inflater.stream, Z_NO_FLUSH)
          return room.count - Int(inflater.stream.pointee.avail_out)
        }
        if output.readableBytes > limit { return .decompressedTooLarge(limit: limit) }
        switch code {
        case Z_STREAM_END:
          let isWhole = inflater.stream.pointee.avail_in == 0
          return isWhole ? nil : .corrupt("not all input consumed")
        case Z_OK where inflater.stream.pointee.avail_out == 0:
          step = output.readableBytes
        case Z_OK, Z_BUF_ERROR:
          // Room is left and the end is not reached: the input was cut short.
          return .corrupt("data error")
        default:
          return .corrupt("zlib error")
        }
      }
    }
    if let reason { throw MessageCodecError(reason) }
    return output
  }

  /// The most that zlib's 32-bit counters and a `ByteBuffer` hold with room to spare.
  private static let longestMessage = Int(Int32.max)
}

/// A z_stream at a fixed address: zlib keeps a pointer back to it.
private protocol ZlibStream: ~Copyable {
  var stream: UnsafeMutablePointer<z_stream> { get }
}

extension ZlibStream where Self: ~Copyable {
  /// The bytes must stay where they are until the last call of zlib.
  func setInput(_ bytes: UnsafeRawBufferPointer) {
    // zlib never writes through `next_in`; its type lacks the const.
    stream.pointee.next_in = UnsafeMutablePointer(
      mutating: bytes.baseAddress?.assumingMemoryBound(to: Bytef.self)
    )
    stream.pointee.avail_in = uInt(bytes.count)
  }

  func setOutput(_ room: UnsafeMutableRawBufferPointer) {
    stream.pointee.next_out = room.baseAddress?.assumingMemoryBound(to: Bytef.self)
    stream.pointee.avail_out = uInt(clamping: room.count)
  }
}

private struct Deflater: ZlibStream, ~Copyable {
  let stream: UnsafeMutablePointer<z_stream>

  init?(_ algorithm: CompressionAlgorithm) {
    let stream = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
    stream.initialize(to: z_stream())
    let level = Z_DEFAULT_COMPRESSION
    guard grpc_engine_deflate_init(stream, level, algorithm.windowBits) == Z_OK else {
      stream.deallocate()
      return nil
    }
    self.stream = stream
  }

  deinit {
    deflateEnd(stream)
    stream.deallocate()
  }

  func bound(for length: Int) -> Int { Int(deflateBound(stream, uLong(length))) }
}

private struct Inflater: ZlibStream, ~Copyable {
  let stream: UnsafeMutablePointer<z_stream>

  init?(_ algorithm: CompressionAlgorithm) {
    let stream = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
    stream.initialize(to: z_stream())
    guard grpc_engine_inflate_init(stream, algorithm.windowBits) == Z_OK else {
      stream.deallocate()
      return nil
    }
    self.stream = stream
  }

  deinit {
    inflateEnd(stream)
    stream.deallocate()
  }
}
