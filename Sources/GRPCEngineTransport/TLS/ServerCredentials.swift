internal import GRPCEngineLocks
internal import Glibc
internal import NIOCore
internal import NIOSSL

/// Renews credentials if they have to be, and calls what it is given when they are as they should be.
package typealias CredentialsRefresh =
  @Sendable (_ whenDone: @escaping @Sendable () -> Void) -> Void

/// What a secure port shows and demands.
///
/// What it shows may be renewed while it is in use: connections that come later get the new one.
package final class ServerCredentials: Sendable {
  /// A private key and the certificates that vouch for it, both PEM.
  package struct KeyPair: Sendable {
    package var privateKey: [UInt8]
    package var certificateChain: [UInt8]
    package init(privateKey: [UInt8], certificateChain: [UInt8]) {
      self.privateKey = privateKey
      self.certificateChain = certificateChain
    }
  }

  /// What PEM text could not be used, and why.
  package struct InvalidCredentials: Error {
    package let message: String

    package init(message: String) { self.message = message }
  }

  /// From when to when, in seconds since 1970, the first certificate of PEM text is valid; `nil` when there is
  /// none.
  package static func validity(of chain: [UInt8]) -> (begin: Int, end: Int)? {
    guard let certificate = (try? NIOSSLCertificate.fromPEMBytes(chain))?.first else { return nil }
    return (Int(certificate.notValidBefore), Int(certificate.notValidAfter))
  }

  /// What connections are served with.
  fileprivate struct Context: Sendable {
    let context: NIOSSLContext
    /// The only certificates that clients may show, as DER; `nil` when authorities vouch for them.
    let pinned: Set<[UInt8]>?
  }

  private let current: Locked<Context?>
  private let policy: TLSPolicy
  /// Which peers are served without encryption, for being on this machine; `nil` with TLS.
  let local: LocalConnection?

  /// Makes what the next connection is served with; `nil` without TLS.
  func makeHandler() -> NIOSSLServerHandler? {
    guard let current = self.current.withLock({ $0 }) else { return nil }
    guard let pinned = current.pinned else { return NIOSSLServerHandler(context: current.context) }
    return NIOSSLServerHandler(
      context: current.context,
      customVerificationCallback: { certificates, promise in
        promise.succeed(Self.isPinned(certificates.first, pinned) ? .certificateVerified : .failed)
      }
    )
  }

  private static func isPinned(_ certificate: NIOSSLCertificate?, _ pinned: Set<[UInt8]>) -> Bool {
    guard let certificate, let der = try? certificate.toDERBytes() else { return false }
    let now = time(nil)
    return pinned.contains(der) && certificate.notValidBefore <= now
      && now <= certificate.notValidAfter
  }

  /// Credentials that trust peers on this machine, and turn others away.
  package init(local: LocalConnection) {
    self.current = Locked(nil)
    self.policy = TLSPolicy()
    self.local = local
  }

  /// - Parameters:
  ///   - keyPairs: at least one; the one whose certificate names the host that the client asks for
  ///     (SNI) is shown, the first when none does.
  ///   - rootCertificates: PEM of the authorities that may vouch for clients.
  ///   - requireClientAuth: whether a client without a certificate is refused. When not, one that
  ///     shows a certificate is verified all the same.
  ///   - policy: versions and cipher suites.
  package init(
    keyPairs: [KeyPair],
    rootCertificates: [UInt8]?,
    requireClientAuth: Bool,
    policy: TLSPolicy = TLSPolicy()
  ) throws(InvalidCredentials) {
    self.policy = policy
    self.local = nil
    self.current = Locked(
      try ContextMaker(rootCertificates, requireClientAuth, policy).makeContext(keyPairs)
    )
  }

  /// Puts others in place of what was given to `init`. May be called from any thread.
  ///
  /// - Throws: `InvalidCredentials`; what there was stays in use then.
  package func renew(
    keyPairs: [KeyPair],
    rootCertificates: [UInt8]?,
    requireClientAuth: Bool
  ) throws(InvalidCredentials) {
    let maker = try ContextMaker(rootCertificates, requireClientAuth, self.policy)
    let context = try maker.makeContext(keyPairs)
    self.current.withLock { $0 = context }
  }
}

/// Makes a context of what a port demands, and what it shows.
private struct ContextMaker {
  typealias KeyPair = ServerCredentials.KeyPair
  typealias InvalidCredentials = ServerCredentials.InvalidCredentials

  private let roots: [NIOSSLCertificate]?
  private let requireClientAuth: Bool
  private let policy: TLSPolicy

  init(
    _ rootCertificates: [UInt8]?,
    _ requireClientAuth: Bool,
    _ policy: TLSPolicy
  ) throws(InvalidCredentials) {
    if let rootCertificates {
      self.roots = try Self.certificates(rootCertificates, "root certificates")
    } else {
      self.roots = nil
    }
    self.requireClientAuth = requireClientAuth
    self.policy = policy
  }

  func makeContext(
    _ keyPairs: [KeyPair]
  ) throws(InvalidCredentials) -> ServerCredentials.Context {
    guard let first = keyPairs.first else {
      throw InvalidCredentials(message: "at least one private key and certificate chain is needed")
    }
    let contexts = try self.contexts(keyPairs)
    var configuration = try self.configuration(first)
    if contexts.count > 1 {
      configuration.sslContextCallback = { values, promise in
        let name = values.serverHostname
        let match = contexts.first { $0.serves(name) } ?? contexts[0]
        var override = NIOSSLContextConfigurationOverride()
        override.certificateChain = match.chain
        override.privateKey = match.key
        promise.succeed(override)
      }
    }
    return .init(context: try Self.context(configuration), pinned: self.pinned)
  }

  /// BoringSSL takes no certificate for a trust anchor whose key usage does not let it sign others,
  /// not even its own. grpcio does, for the one itself. Where there are only such, each is compared.
  private var pinned: Set<[UInt8]>? {
    guard let roots = self.roots else { return nil }
    let anchors = roots.map { CertificateNames($0) }
    return anchors.allSatisfy(\.mayNotSign) ? Set(anchors.map(\.der)) : nil
  }

  private struct NamedKeyPair: Sendable {
    let names: [String]
    let chain: [NIOSSLCertificateSource]
    let key: NIOSSLPrivateKeySource

    /// RFC 6125 section 6.4.3: a wildcard stands for exactly the left-most label.
    func serves(_ host: String?) -> Bool {
      guard let host = host?.lowercased() else { return false }
      return self.names.contains { name in
        if name == host { return true }
        guard name.hasPrefix("*."), let dot = host.firstIndex(of: ".") else { return false }
        return host[dot...] == name.dropFirst()
      }
    }
  }

  private func contexts(_ keyPairs: [KeyPair]) throws(InvalidCredentials) -> [NamedKeyPair] {
    var result: [NamedKeyPair] = []
    for pair in keyPairs {
      // Made once here as well, so that a key that does not fit is an error now, not at a handshake.
      _ = try Self.context(try self.configuration(pair))
      let certificates = try Self.certificates(pair.certificateChain, "certificate chain")
      result.append(
        NamedKeyPair(
          names: certificates.first.map { CertificateNames($0).hosts } ?? [],
          chain: certificates.map { .certificate($0) },
          key: .privateKey(try Self.privateKey(pair.privateKey))
        )
      )
    }
    return result
  }

  private func configuration(_ pair: KeyPair) throws(InvalidCredentials) -> TLSConfiguration {
    let chain = try Self.certificates(pair.certificateChain, "certificate chain")
    try self.refuseUselessSuites(chain)
    var configuration = TLSConfiguration.makeServerConfiguration(
      certificateChain: chain.map { .certificate($0) },
      privateKey: .privateKey(try Self.privateKey(pair.privateKey))
    )
    configuration.minimumTLSVersion = self.policy.minimumVersion == .tls12 ? .tlsv12 : .tlsv13
    configuration.cipherSuites = self.policy.cipherSuites.joined(separator: ":")
    configuration.applicationProtocols = ["h2"]
    if let roots = self.roots {
      configuration.trustRoots = .certificates(roots)
      configuration.certificateVerification =
        self.requireClientAuth ? .noHostnameVerification : .optionalVerification
    }
    return configuration
  }

  /// With suites of the other kind of key only, no client of TLS 1.2 could connect.
  private func refuseUselessSuites(
    _ chain: [NIOSSLCertificate]
  ) throws(InvalidCredentials) {
    guard self.policy.minimumVersion == .tls12, let first = chain.first else { return }
    let kind = CertificateNames(first).hasRSAKey ? "RSA" : "ECDSA"
    guard !self.policy.cipherSuites.contains(where: { $0.contains("-\(kind)-") }) else { return }
    throw InvalidCredentials(
      message: "no cipher suite goes with the key of the certificate: name one with \(kind), or "
        + "have TLSv1.3 as the lowest version"
    )
  }

  private static func context(
    _ configuration: TLSConfiguration
  ) throws(InvalidCredentials) -> NIOSSLContext {
    do {
      return try NIOSSLContext(configuration: configuration)
    } catch {
      throw InvalidCredentials(
        message: "the private key does not fit the certificate, which is the first of the chain"
      )
    }
  }

  private static func certificates(
    _ pem: [UInt8],
    _ what: String
  ) throws(InvalidCredentials) -> [NIOSSLCertificate] {
    let certificates = (try? NIOSSLCertificate.fromPEMBytes(pem)) ?? []
    guard !certificates.isEmpty else {
      let isThere = Self.text(pem).contains("-----BEGIN CERTIFICATE")
      throw InvalidCredentials(
        message: isThere
          ? "a certificate in the \(what) can't be read"
          : "there is no PEM certificate in the \(what)"
      )
    }
    return certificates
  }

  private static func privateKey(_ pem: [UInt8]) throws(InvalidCredentials) -> NIOSSLPrivateKey {
    do {
      return try NIOSSLPrivateKey(bytes: pem, format: .pem)
    } catch {
      let text = Self.text(pem)
      let message =
        if !text.contains("PRIVATE KEY-----") {
          "there is no PEM private key"
        } else if text.contains("ENCRYPTED") {
          "the private key is encrypted: give it without a passphrase"
        } else {
          "the private key can't be read, or is of a kind that is not supported"
        }
      throw InvalidCredentials(message: message)
    }
  }

  private static func text(_ pem: [UInt8]) -> String { String(decoding: pem, as: UTF8.self) }
}
