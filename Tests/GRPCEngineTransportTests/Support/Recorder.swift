import GRPCEngineHTTP2
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import TransportFuzz

/// Takes every stream and notes what the transport tells it.
///
/// Safe to share because it is not: an `EmbeddedConnection` has one thread.
final class Recorder: StreamAcceptor, @unchecked Sendable {
  enum Event: Hashable {
    case message([UInt8])
    case end
    case invalid(StatusCode)
    case cancelled(StatusCode)
    case failed(StreamFailure)
    case writable
    case finished
  }

  final class Receiver: StreamReceiver {
    let stream: ServerStream
    let head: RequestHead
    var events: [Event] = []
    var onEnd: (ServerStream) -> Void = { _ in }

    init(stream: ServerStream, head: RequestHead) {
      self.stream = stream
      self.head = head
    }

    func received(_ message: ReceivedMessage) {
      self.events.append(.message(Array(message.payload.readableBytesView)))
    }

    func receivedEnd() {
      self.events.append(.end)
      self.onEnd(self.stream)
    }

    func receivedInvalidMessage(_ status: Status) {
      self.events.append(.invalid(status.code))
      self.stream.sendEnd(messages: nil, trailers: Recorder.trailersOnly)
    }

    func cancelled(_ status: Status) { self.events.append(.cancelled(status.code)) }
    func failed(_ failure: StreamFailure) { self.events.append(.failed(failure)) }
    func becameWritable() { self.events.append(.writable) }
    func finished() { self.events.append(.finished) }
  }

  private(set) var receivers: [Receiver] = []
  /// What every stream does when its request has ended.
  var onEnd: (ServerStream) -> Void = { $0.sendEnd(messages: nil, trailers: Recorder.trailersOnly) }

  func accept(_ stream: ServerStream, head: RequestHead) -> (any StreamReceiver)? {
    let receiver = Receiver(stream: stream, head: head)
    receiver.onEnd = self.onEnd
    self.receivers.append(receiver)
    return receiver
  }

  /// Lets go of the streams: they lead to their connection and that to its acceptor, so that none
  /// of them would ever be freed.
  func forget() { self.receivers = [] }

  static let headers: HeaderList = [":status": "200", "content-type": "application/grpc"]
  static let trailers: HeaderList = ["grpc-status": "0"]
  static let trailersOnly: HeaderList = [
    ":status": "200", "content-type": "application/grpc", "grpc-status": "0",
  ]

  /// A greeted connection without a socket.
  func connect(
    _ configuration: TransportConfiguration = TransportConfiguration()
  ) throws -> (TestClient, EmbeddedConnection) {
    let connection = try EmbeddedConnection(configuration, acceptor: self)
    let client = TestClient(connection)
    try client.handshake()
    return (client, connection)
  }
}

extension OutgoingData {
  init(_ bytes: ByteBuffer) {
    self.init(capacity: bytes.readableBytes)
    bytes.withUnsafeReadableBytes { self.write($0) }
  }
}

extension ServerStream {
  func sendMessages(_ messages: ByteBuffer) { self.sendMessages(OutgoingData(messages)) }

  func sendEnd(messages: ByteBuffer, trailers: HeaderList) {
    self.sendEnd(messages: OutgoingData(messages), trailers: trailers)
  }
}
