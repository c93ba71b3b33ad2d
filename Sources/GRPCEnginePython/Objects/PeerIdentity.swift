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
    if !self.names.alternativeNames.isEmpty { return self.names.alternativeNames }
    return self.names.commonName.map { [$0] } ?? []
  }

  func makeIdentities() -> PythonPointer? { Self.makeList(self.identities) }

  /// A dict of lists of bytes.
  static func makeAuthContext(_ peer: Peer) -> PythonPointer? {
    guard let dict = PythonReference(owning: PyDict_New()) else { return nil }
    var properties: [(String, [[UInt8]])] = [
      ("transport_security_type", [Array((peer.isSecure ? "ssl" : "insecure").utf8)])
    ]
    if let identity = PeerIdentity(peer) {
      if let name = identity.names.commonName { properties.append(("x509_common_name", [name])) }
      if !identity.names.alternativeNames.isEmpty {
        properties.append(("x509_subject_alternative_name", identity.names.alternativeNames))
      }
      properties.append(("x509_pem_cert", [identity.pem]))
    }
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
