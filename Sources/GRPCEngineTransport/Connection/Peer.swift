package import NIOCore
package import NIOSSL
internal import Synchronization

/// What a TLS handshake came to.
package struct Handshake: Sendable {
  /// `TLSv1.2` or `TLSv1.3`.
  package let version: String?
  /// The host that the client asked for.
  package let serverName: String?
  /// The key exchange's group, by grpcio's name for it, such as `X25519`.
  package let keyExchangeGroup: String?
  package let isResumed: Bool
}

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
  /// Whether the port trusts it for being on this machine.
  package let isLocal: Bool
  /// What the handshake of an encrypted connection came to.
  package let handshake: Handshake?
  /// The certificates that the peer showed, its own first; verified against the client CA.
  package let certificates: [NIOSSLCertificate]

  package init(
    address: SocketAddress?,
    localAddress: SocketAddress?,
    isSecure: Bool,
    isLocal: Bool = false,
    handshake: Handshake? = nil,
    certificates: [NIOSSLCertificate]
  ) {
    self.address = address
    self.localAddress = localAddress
    self.isSecure = isSecure
    self.isLocal = isLocal
    self.handshake = handshake
    self.certificates = certificates
  }

  private static let mapped = "::ffff:"

  /// The peer as grpcio writes it: `ipv4:127.0.0.1:50312`, `ipv6:%5B::1%5D:50312`, `unix:`.
  package var description: String {
    switch self.address {
    case .v4:
      return "ipv4:\(self.address?.ipAddress ?? ""):\(self.address?.port ?? 0)"
    case .v6:
      let address = self.address?.ipAddress ?? ""
      // A client of IPv4 on a socket of both (RFC 4291 section 2.5.5.2), as on the default address.
      if address.hasPrefix(Self.mapped), address.contains(".") {
        return "ipv4:\(address.dropFirst(Self.mapped.count)):\(self.address?.port ?? 0)"
      }
      return "ipv6:%5B\(address)%5D:\(self.address?.port ?? 0)"
    case .unixDomainSocket, nil:
      // The connecting side of a Unix domain socket has no name of its own.
      return "unix:"
    }
  }
}
