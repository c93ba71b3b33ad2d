package import NIOCore
package import NIOSSL
internal import Synchronization

/// Who is at the other end of a connection.
///
/// Immutable after the handshake, so calls keep it beyond the connection's life and read it from
/// any thread.
package final class Peer: Sendable {
  package let address: SocketAddress?
  /// The local address, which names the socket's path for a Unix domain socket.
  package let localAddress: SocketAddress?
  /// Whether the connection is encrypted.
  package let isSecure: Bool
  /// The certificates that the peer showed, its own first; verified against the client CA.
  package let certificates: [NIOSSLCertificate]

  package init(
    address: SocketAddress?,
    localAddress: SocketAddress?,
    isSecure: Bool,
    certificates: [NIOSSLCertificate]
  ) {
    self.address = address
    self.localAddress = localAddress
    self.isSecure = isSecure
    self.certificates = certificates
  }

  /// The peer as grpcio writes it: `ipv4:127.0.0.1:50312`, `ipv6:%5B::1%5D:50312`, `unix:`.
  package var description: String {
    switch self.address {
    case .v4:
      return "ipv4:\(self.address?.ipAddress ?? ""):\(self.address?.port ?? 0)"
    case .v6:
      return "ipv6:%5B\(self.address?.ipAddress ?? "")%5D:\(self.address?.port ?? 0)"
    case .unixDomainSocket, nil:
      // The connecting side of a Unix domain socket has no name of its own.
      return "unix:"
    }
  }
}
