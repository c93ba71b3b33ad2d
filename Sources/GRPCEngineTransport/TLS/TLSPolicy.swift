/// Which versions and cipher suites of TLS a port takes.
package struct TLSPolicy: Sendable {
  package enum Version: Sendable { case tls12, tls13 }

  /// The lowest version. The default is TLS 1.2, the lowest that HTTP/2 allows (RFC 9113 section
  /// 9.2).
  package var minimumVersion = Version.tls12
  /// The suites of TLS 1.2, by OpenSSL's names, the preferred first. The default is all that HTTP/2
  /// allows; those of TLS 1.3 are fixed and all good.
  package var cipherSuites = Self.allowedCipherSuites

  /// What RFC 9113 appendix A does not prohibit of what there is: ephemeral keys and authenticated
  /// encryption.
  package static let allowedCipherSuites = [
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
  ]

  package init() {}
}
