internal import GRPCEngineTesting
internal import NIOCore
internal import NIOHPACK

/// Checks that what a server sends is HTTP/2 and gRPC, whatever it was sent.
struct AnswerCheck {
  private struct Stream {
    var hasHeaders = false
    var isEnded = false
    var isReset = false
  }

  private var reader = FrameReader()
  private var streams: [Int: Stream] = [:]
  /// Bytes of DATA so far.
  private(set) var dataBytes = 0
  /// The connection failed: GOAWAY with an error.
  private(set) var hasFailed = false

  /// - Returns: what is wrong.
  mutating func received(_ bytes: ByteBuffer) -> String? {
    self.reader.append(bytes)
    do {
      while let frame = try self.reader.next() {
        if let violation = self.violation(frame) { return violation }
      }
      return nil
    } catch {
      return "\(error)"
    }
  }

  private mutating func violation(_ frame: Frame) -> String? {
    switch frame {
    case .headers(let id, let headers, let isEnd):
      var stream = self.streams[id] ?? Stream()
      defer { self.streams[id] = stream }
      if stream.isEnded || stream.isReset { return "HEADERS after the end of stream \(id)" }
      if stream.hasHeaders {
        if !isEnd { return "trailers that do not end stream \(id)" }
        if headers.contains(name: ":status") { return "trailers with a :status" }
        if headers[canonicalForm: "grpc-status"].count != 1 { return "trailers without a status" }
      } else {
        guard let status = headers.first(name: ":status") else { return "no :status" }
        if isEnd, status == "200", headers[canonicalForm: "grpc-status"].count != 1 {
          return "an answer without a status"
        }
      }
      stream.hasHeaders = true
      stream.isEnded = isEnd
      return nil
    case .data(let id, let payload, let isEnd):
      self.dataBytes += payload.readableBytes
      guard let stream = self.streams[id], stream.hasHeaders else { return "DATA without HEADERS" }
      if stream.isEnded || stream.isReset { return "DATA after the end of stream \(id)" }
      return isEnd ? "DATA that ends an answer without trailers" : nil
    case .reset(let id, _):
      var stream = self.streams[id] ?? Stream()
      defer { self.streams[id] = stream }
      // Frames for a stream that is closed may each be answered by another one.
      stream.isReset = true
      return nil
    case .goAway(_, let code, _):
      if code != ErrorCode.noError { self.hasFailed = true }
      return nil
    case .settings, .ping, .windowUpdate:
      return nil
    case .other(let raw):
      return "a frame of type \(raw.type)"
    }
  }
}
