internal import CPythonABI
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import PythonInterop

/// A peer that showed a certificate, or is trusted for being on this machine, as grpcio's auth context
/// tells of it.
struct PeerIdentity {
  private static let local = "local"

  /// `nil` for a peer on this machine.
  private let names: CertificateNames?

  /// `nil` for a peer that is neither.
  init?(_ peer: Peer) {
    let certificate = peer.certificates.first
    guard certificate != nil || peer.isLocal else { return nil }
    self.names = certificate.map { CertificateNames($0) }
  }

  /// The property that identifies the peer: its alternative names, else its common name.
  var key: String {
    guard let names = self.names else { return "transport_security_type" }
    return names.alternativeNames.isEmpty
      ? "x509_common_name" : "x509_subject_alternative_name"
  }

  private var identities: [[UInt8]] {
    guard let names = self.names else { return [Array(Self.local.utf8)] }
    let alternatives = names.alternativeNames.map(\.text)
    return alternatives.isEmpty ? [names.commonName].compactMap(\.self) : alternatives
  }

  /// The properties that grpcio lists for a certificate, those without a value left out.
  private var properties: [(String, [[UInt8]])] {
    guard let certified = self.names else { return [] }
    func names(_ kind: CertificateNames.Kind) -> [[UInt8]] {
      certified.alternativeNames.filter { $0.kind == kind }.map(\.text)
    }
    let spiffe = names(.uri).filter { $0.starts(with: "spiffe://".utf8) }
    let all: [(String, [[UInt8]])] = [
      ("x509_subject", certified.subject.isEmpty ? [] : [certified.subject]),
      ("x509_common_name", [certified.commonName].compactMap(\.self)),
      ("x509_subject_alternative_name", certified.alternativeNames.map(\.text)),
      ("peer_dns", names(.dns)),
      ("peer_uri", names(.uri)),
      ("peer_spiffe_id", spiffe),
      ("peer_email", names(.email)),
      ("peer_ip", names(.ipAddress)),
      ("x509_pem_cert", [Self.pem(certified.der)]),
    ]
    return all.filter { !$0.1.isEmpty }
  }

  func makeIdentities() -> PythonPointer? { Self.makeList(self.identities) }

  /// A dict of lists of bytes.
  static func makeAuthContext(_ peer: Peer) -> PythonPointer? {
    guard let dict = PythonReference(owning: PyDict_New()) else { return nil }
    func text(_ value: String) -> [[UInt8]] { [Array(value.utf8)] }
    let type = peer.isSecure ? "ssl" : peer.isLocal ? Self.local : "insecure"
    var properties = [("transport_security_type", text(type))]
    if let identity = PeerIdentity(peer) { properties += identity.properties }
    let isTrusted = peer.isSecure || peer.isLocal
    let level = isTrusted ? "TSI_PRIVACY_AND_INTEGRITY" : "TSI_SECURITY_NONE"
    properties.append(("security_level", text(level)))
    if let handshake = peer.handshake {
      properties.append(("ssl_session_reused", text(handshake.isResumed ? "true" : "false")))
      for (name, value) in [
        ("ssl_requested_server_name", handshake.serverName),
        ("ssl_tls_version", handshake.version),
        ("ssl_negotiated_key_exchange_group", handshake.keyExchangeGroup),
      ] {
        if let value { properties.append((name, text(value))) }
      }
    }
    for (name, values) in properties {
      guard let list = PythonReference(owning: Self.makeList(values)),
        PyDict_SetItemString(dict.pointer, name, list.pointer) == 0
      else { return nil }
    }
    return dict.take()
  }

  /// RFC 7468: base64 in lines of 64 characters.
  private static func pem(_ der: [UInt8]) -> [UInt8] {
    var text = "-----BEGIN CERTIFICATE-----\n"
    var base64 = Base64.encode(der)[...]
    while base64.utf8.count % 4 != 0 { base64 += "=" }
    while !base64.isEmpty {
      text += base64.prefix(64) + "\n"
      base64 = base64.dropFirst(64)
    }
    return Array((text + "-----END CERTIFICATE-----\n").utf8)
  }

  private static func makeList(_ values: [[UInt8]]) -> PythonPointer? {
    guard let list = PythonReference(owning: PyList_New(0)) else { return nil }
    for value in values {
      guard let bytes = PythonReference(owning: PythonBytes.make(value)),
        PyList_Append(list.pointer, bytes.pointer) == 0
      else { return nil }
    }
    return list.take()
  }
}
