internal import NIOCore
package import NIOSSL
internal import Synchronization

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
  }

  private let current: Mutex<NIOSSLContext>

  /// What the next connection is served with.
  package var context: NIOSSLContext { self.current.withLock { $0 } }

  /// - Parameters:
  ///   - keyPairs: at least one; the one whose certificate names the host that the client asks for
  ///     (SNI) is shown, the first when none does.
  ///   - rootCertificates: PEM of the authorities that may vouch for clients.
  ///   - requireClientAuth: whether a client without a certificate is refused. When not, one that
  ///     shows a certificate is verified all the same.
  package init(
    keyPairs: [KeyPair],
    rootCertificates: [UInt8]?,
    requireClientAuth: Bool
  ) throws(InvalidCredentials) {
    self.current = Mutex(
      try Self.makeContext(
        keyPairs: keyPairs,
        rootCertificates: rootCertificates,
        requireClientAuth: requireClientAuth
      )
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
    let context = try Self.makeContext(
      keyPairs: keyPairs,
      rootCertificates: rootCertificates,
      requireClientAuth: requireClientAuth
    )
    self.current.withLock { $0 = context }
  }

  private static func makeContext(
    keyPairs: [KeyPair],
    rootCertificates: [UInt8]?,
    requireClientAuth: Bool
  ) throws(InvalidCredentials) -> NIOSSLContext {
    guard let first = keyPairs.first else {
      throw InvalidCredentials(message: "at least one private key and certificate chain is needed")
    }
    let contexts = try Self.contexts(keyPairs, rootCertificates, requireClientAuth)
    var configuration = try Self.configuration(first, rootCertificates, requireClientAuth)
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
    return try Self.context(configuration)
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

  private static func contexts(
    _ keyPairs: [KeyPair],
    _ roots: [UInt8]?,
    _ requireClientAuth: Bool
  ) throws(InvalidCredentials) -> [NamedKeyPair] {
    var result: [NamedKeyPair] = []
    for pair in keyPairs {
      // Made once here as well, so that a key that does not fit is an error now, not at a handshake.
      _ = try Self.context(try Self.configuration(pair, roots, requireClientAuth))
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

  private static func configuration(
    _ pair: KeyPair,
    _ roots: [UInt8]?,
    _ requireClientAuth: Bool
  ) throws(InvalidCredentials) -> TLSConfiguration {
    let chain = try Self.certificates(pair.certificateChain, "certificate chain")
    var configuration = TLSConfiguration.makeServerConfiguration(
      certificateChain: chain.map { .certificate($0) },
      privateKey: .privateKey(try Self.privateKey(pair.privateKey))
    )
    configuration.minimumTLSVersion = .tlsv12
    configuration.applicationProtocols = ["h2"]
    if let roots {
      configuration.trustRoots = .certificates(try Self.certificates(roots, "root certificates"))
      configuration.certificateVerification =
        requireClientAuth ? .noHostnameVerification : .optionalVerification
    }
    return configuration
  }

  private static func context(
    _ configuration: TLSConfiguration
  ) throws(InvalidCredentials) -> NIOSSLContext {
    do {
      return try NIOSSLContext(configuration: configuration)
    } catch {
      throw InvalidCredentials(message: "the private key does not fit the certificate: \(error)")
    }
  }

  private static func certificates(
    _ pem: [UInt8],
    _ what: String
  ) throws(InvalidCredentials) -> [NIOSSLCertificate] {
    let certificates = (try? NIOSSLCertificate.fromPEMBytes(pem)) ?? []
    guard !certificates.isEmpty else {
      throw InvalidCredentials(message: "the \(what) holds no PEM certificate")
    }
    return certificates
  }

  private static func privateKey(_ pem: [UInt8]) throws(InvalidCredentials) -> NIOSSLPrivateKey {
    do {
      return try NIOSSLPrivateKey(bytes: pem, format: .pem)
    } catch {
      throw InvalidCredentials(message: "the private key is no unencrypted PEM key")
    }
  }
}
