package import GRPCEngineWire
internal import NIOCore
package import NIOHPACK

/// What came on one stream so far.
package struct Answer: Sendable {
  package internal(set) var headers: HPACKHeaders?
  package internal(set) var trailers: HPACKHeaders?
  package internal(set) var messages: [ReceivedMessage] = []
  /// The error code of RST_STREAM.
  package internal(set) var reset: UInt32?
  /// The server has ended the stream.
  package internal(set) var isEnded = false
  /// Bytes of DATA.
  package internal(set) var receivedBytes = 0
  /// Bytes that the server has granted by WINDOW_UPDATE.
  package internal(set) var granted = 0
  var decoder = MessageDecoder(maximumLength: .max)

  /// The last header block: a trailers-only answer has one only.
  private var last: HPACKHeaders? { self.trailers ?? self.headers }

  /// `grpc-status`.
  package var code: StatusCode? {
    self.last?.first(name: "grpc-status").flatMap { Int($0) }.flatMap { StatusCode(rawValue: $0) }
  }

  /// `grpc-message`, decoded.
  package var details: String? {
    self.last?.first(name: "grpc-message").map { PercentEncoding.decode($0) }
  }

  /// `:status`.
  package var httpStatus: String? { self.headers?.first(name: ":status") }

  package var isTrailersOnly: Bool { self.isEnded && self.trailers == nil && self.headers != nil }

  /// The messages' bytes.
  package var payloads: [[UInt8]] { self.messages.map { Array($0.payload.readableBytesView) } }

  mutating func received(_ data: ByteBuffer) throws {
    self.receivedBytes += data.readableBytes
    self.decoder.append(data)
    while let message = try self.decoder.next() { self.messages.append(message) }
  }
}
