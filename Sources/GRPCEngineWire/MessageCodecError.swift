/// A message that cannot be taken from or put on the wire. It ends its call with ``status``.
public struct MessageCodecError: Error, Hashable, Sendable {
  public enum Reason: Hashable, Sendable {
    /// The prefix announces more than the limit allows.
    case tooLarge(length: Int, limit: Int)
    /// The message grows past the limit when it is decompressed.
    case decompressedTooLarge(limit: Int)
    /// The prefix's first byte is neither 0 nor 1.
    case badFlag(UInt8)
    /// The compressed flag is set, but the call's `grpc-encoding` is absent or `identity`.
    case compressedWithoutEncoding
    /// The compressed bytes are not what the call's `grpc-encoding` says; the text says how.
    case corrupt(String)
    /// The message cannot be compressed: zlib has no memory, or the message is too long for it.
    case compressionFailed
  }

  public let reason: Reason

  public init(_ reason: Reason) {
    self.reason = reason
  }

  /// The code and the words of grpc's own servers, as grpcio 1.85 answers. A bad flag, which that one
  /// lets pass, has the words with which its predecessors refused it.
  public var status: Status {
    switch reason {
    case .tooLarge(let length, let limit):
      Status(
        code: .resourceExhausted,
        details: "Received message larger than max (\(length) vs. \(limit))"
      )
    case .decompressedTooLarge:
      Status(code: .resourceExhausted, details: "Decompressed message larger than max")
    case .badFlag(let flag):
      Status(
        code: .internalError,
        details: "Bad GRPC frame type 0x\(flag < 16 ? "0" : "")\(String(flag, radix: 16))"
      )
    case .compressedWithoutEncoding:
      Status(
        code: .internalError,
        details: "Compression bit set but no encoding configured"
      )
    case .corrupt(let how):
      Status(code: .internalError, details: "Decompression failed due to \(how)")
    case .compressionFailed:
      Status(code: .internalError, details: "Compression failed")
    }
  }
}
