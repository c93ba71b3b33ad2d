package import NIOSSL

/// Whom a certificate names.
package struct CertificateNames: Sendable {
  /// The subject's common name (RFC 5280 section 4.1.2.6), the last one when there are several.
  package let commonName: [UInt8]?
  /// The certificate itself (X.690 DER).
  package let der: [UInt8]
  /// The subject alternative names as grpcio lists them: DNS names, URIs and e-mail addresses as
  /// their text, IP addresses in their usual notation.
  package let alternativeNames: [[UInt8]]
  /// The DNS names among them, in lower case; the common name when there is none.
  package let dnsNames: [String]

  package init(_ certificate: NIOSSLCertificate) {
    var alternativeNames: [[UInt8]] = []
    var dnsNames: [String] = []
    for name in certificate._subjectAlternativeNames() {
      let bytes = Array(name.contents)
      switch name.nameType {
      case .dnsName:
        alternativeNames.append(bytes)
        dnsNames.append(String(decoding: bytes, as: UTF8.self).lowercased())
      case .email, .uri:
        alternativeNames.append(bytes)
      case .ipAddress:
        alternativeNames.append(Array(Self.ipAddressText(bytes).utf8))
      default:
        break
      }
    }
    let der = (try? certificate.toDERBytes()) ?? []
    self.der = der
    self.commonName = Self.commonName(der: der)
    if dnsNames.isEmpty, let name = self.commonName {
      dnsNames = [String(decoding: name, as: UTF8.self).lowercased()]
    }
    self.alternativeNames = alternativeNames
    self.dnsNames = dnsNames
  }

  private static func ipAddressText(_ bytes: [UInt8]) -> String {
    if bytes.count == 4 { return bytes.map(String.init).joined(separator: ".") }
    return stride(from: 0, to: bytes.count - 1, by: 2)
      .map { String(Int(bytes[$0]) << 8 | Int(bytes[$0 + 1]), radix: 16) }
      .joined(separator: ":")
  }

  // MARK: DER (X.690)

  /// One element: its tag, and where its contents lie.
  private struct Element {
    let tag: UInt8
    let contents: ArraySlice<UInt8>
    let end: Int
  }

  private static func element(_ bytes: ArraySlice<UInt8>) -> Element? {
    var rest = bytes
    guard let tag = rest.popFirst(), let first = rest.popFirst() else { return nil }
    var length = Int(first)
    if first & 0x80 != 0 {
      length = 0
      guard first & 0x7F <= 4 else { return nil }
      for _ in 0..<(first & 0x7F) {
        guard let byte = rest.popFirst() else { return nil }
        length = length << 8 | Int(byte)
      }
    }
    guard length <= rest.count else { return nil }
    let end = rest.startIndex + length
    return Element(tag: tag, contents: rest[rest.startIndex..<end], end: end)
  }

  private static func elements(_ bytes: ArraySlice<UInt8>) -> [Element] {
    var result: [Element] = []
    var rest = bytes
    while let next = Self.element(rest) {
      result.append(next)
      rest = rest[next.end...]
    }
    return result
  }

  /// Certificate → TBSCertificate → subject → the last `id-at-commonName` (2.5.4.3).
  private static func commonName(der: [UInt8]) -> [UInt8]? {
    guard let certificate = Self.element(der[...]),
      let tbs = Self.element(certificate.contents)
    else { return nil }
    var fields = Self.elements(tbs.contents)
    // The version is optional and explicitly tagged [0].
    if fields.first?.tag == 0xA0 { fields.removeFirst() }
    // serialNumber, signature, issuer, validity, subject
    guard fields.count > 4 else { return nil }
    var name: [UInt8]?
    for relative in Self.elements(fields[4].contents) {
      for attribute in Self.elements(relative.contents) {
        let parts = Self.elements(attribute.contents)
        if parts.count == 2, Array(parts[0].contents) == [0x55, 0x04, 0x03] {
          name = Array(parts[1].contents)
        }
      }
    }
    return name
  }
}
