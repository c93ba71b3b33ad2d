internal import CPythonABI
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import PythonInterop

/// A peer that showed a certificate, as grpcio's auth context tells of it.
struct PeerIdentity {
  private let names: CertificateNames

  /// `nil` for a peer without a certificate.
  init?(_ peer: Peer) {
    guard let certificate = peer.certificates.first else { return nil }
    self.names = CertificateNames(certificate)
  }

  /// The property that identifies the peer: its alternative names, else its common name.
  var key: String {
    self.names.alternativeNames.isEmpty
      ? "x509_common_name" : "x509_subject_alternative_name"
  }

  private var identities: [[UInt8]] {
    let names = self.names.alternativeNames.map(\.text)
    return names.isEmpty ? [self.names.commonName].compactMap(\.self) : names
  }

  /// The properties that grpcio lists for a certificate, those without a value left out.
  private var properties: [(String, [[UInt8]])] {
    func names(_ kind: CertificateNames.Kind) -> [[UInt8]] {
      self.names.alternativeNames.filter { $0.kind == kind }.map(\.text)
    }
    let spiffe = names(.uri).filter { $0.starts(with: "spiffe://".utf8) }
    let all: [(String, [[UInt8]])] = [
      ("x509_subject", self.names.subject.isEmpty ? [] : [self.names.subject]),
      ("x509_common_name", [self.names.commonName].compactMap(\.self)),
      ("x509_subject_alternative_name", self.names.alternativeNames.map(\.text)),
      ("peer_dns", names(.dns)),
      ("peer_uri", names(.uri)),
      ("peer_spiffe_id", spiffe),
      ("peer_email", names(.email)),
      ("peer_ip", names(.ipAddress)),
      ("x509_pem_cert", [self.pem]),
    ]
    return all.filter { !$0.1.isEmpty }
  }

  func makeIdentities() -> PythonPointer? { Self.makeList(self.identities) }

  /// A dict of lists of bytes.
  static func makeAuthContext(_ peer: Peer) -> PythonPointer? {
    guard let dict = PythonReference(owning: PyDict_New()) else { return nil }
    var properties: [(String, [[UInt8]])] = [
      ("transport_security_type", [Array((peer.isSecure ? "ssl" : "insecure").utf8)])
    ]
    if let identity = PeerIdentity(peer) { properties += identity.properties }
    let level = peer.isSecure ? "TSI_PRIVACY_AND_INTEGRITY" : "TSI_SECURITY_NONE"
    properties.append(("security_level", [Array(level.utf8)]))
    for (name, values) in properties {
      guard let list = PythonReference(owning: Self.makeList(values)),
        PyDict_SetItemString(dict.pointer, name, list.pointer) == 0
      else { return nil }
    }
    return dict.take()
  }

  /// RFC 7468: base64 in lines of 64 characters.
  private var pem: [UInt8] {
    var text = "-----BEGIN CERTIFICATE-----\n"
    var base64 = Base64.encode(self.names.der)[...]
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
