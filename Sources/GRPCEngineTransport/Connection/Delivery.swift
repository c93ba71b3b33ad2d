internal import CGRPCEngineSockets
package import NIOCore

/// How far what was sent to a peer has come: what its system says of it, and not its program.
package struct Delivery {
  /// The socket has taken all there will ever be.
  package var isOutputClosed: Bool
  /// The peer's system has acknowledged all there will ever be; `nil` where the socket can't tell.
  package var isAcknowledged: Bool?
  /// Bytes that it has acknowledged; `nil` where the socket can't tell.
  package var received: Int?
  /// How many segments in a row it has left unanswered.
  package var unanswered: Int
  /// For how long it has given no sign.
  package var silence: TimeAmount

  package init(
    isOutputClosed: Bool = false,
    isAcknowledged: Bool? = nil,
    received: Int? = nil,
    unanswered: Int = 0,
    silence: TimeAmount = .zero
  ) {
    self.isOutputClosed = isOutputClosed
    self.isAcknowledged = isAcknowledged
    self.received = received
    self.unanswered = unanswered
    self.silence = silence
  }

  /// FIN_WAIT1 (RFC 9293 section 3.3.2): the peer has yet to acknowledge the end of what was sent.
  private static let unacknowledged: UInt8 = 4

  private init(_ info: grpc_engine_tcp_info) {
    self.init(
      isAcknowledged: info.state != Self.unacknowledged,
      received: Int(clamping: info.bytes_acked),
      unanswered: Int(max(info.retransmits, info.probes)),
      silence: .milliseconds(Int64(info.last_ack_recv))
    )
  }

  /// Asks the socket of a channel.
  ///
  /// - Parameter body: called on the channel's event loop, with little where the socket is not TCP's; at once
  ///   when this is called there.
  static func ask(_ channel: any Channel, _ body: @escaping (Delivery) -> Void) {
    guard let options = channel as? any SocketOptionProvider else { return body(Delivery()) }
    let info: EventLoopFuture<grpc_engine_tcp_info> = options.unsafeGetSocketOption(
      level: .tcp,
      name: .tcp_info
    )
    info.assumeIsolated().whenComplete { result in
      body((try? result.get()).map { Delivery($0) } ?? Delivery())
    }
  }
}
