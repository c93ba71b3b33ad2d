internal import NIOCore

/// What counts as a peer on this machine, for credentials that trust those (grpcio's
/// `local_server_credentials`).
package enum LocalConnection: Sendable {
  /// TCP from the loopback addresses.
  case tcp
  /// A Unix domain socket.
  case unix

  func admits(peer: SocketAddress?, at local: SocketAddress?) -> Bool {
    switch self {
    case .unix:
      // The connecting side of one has no name of its own.
      if case .unixDomainSocket = local { return true }
      return false
    case .tcp:
      guard let address = peer?.ipAddress else { return false }
      return address == "::1" || address.hasPrefix("127.") || address.hasPrefix("::ffff:127.")
    }
  }
}

/// Closes the connections of peers that are not on this machine, before they are served.
final class LocalGuard: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer

  private let kind: LocalConnection

  init(_ kind: LocalConnection) { self.kind = kind }

  func channelActive(context: ChannelHandlerContext) {
    if self.kind.admits(peer: context.remoteAddress, at: context.localAddress) {
      context.fireChannelActive()
    } else {
      context.close(promise: nil)
    }
  }
}
