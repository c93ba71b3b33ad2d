package import NIOSSL

/// Whom a certificate names.
package struct CertificateNames: Sendable {
  package enum Kind: Sendable { case dns, uri, email, ipAddress }

  /// The certificate itself (X.690 DER).
  package let der: [UInt8]
  /// The subject's common name (RFC 5280 section 4.1.2.6), the last one when there are several.
  package let commonName: [UInt8]?
  /// The subject as RFC 2253 writes it, the most specific part first: `CN=alice,O=Example`.
  package let subject: [UInt8]
  /// The subject alternative names (RFC 5280 section 4.2.1.6) as text, IP addresses in their usual
  /// notation.
  package let alternativeNames: [(kind: Kind, text: [UInt8])]

  package init(_ certificate: NIOSSLCertificate) {
    self.der = (try? certificate.toDERBytes()) ?? []
    let attributes = Self.subjectAttributes(der: self.der)
    self.commonName = attributes.last { $0.type == Self.commonNameType }?.value
    self.subject = Array(
      attributes.reversed()
        .map { Array(Self.label($0.type).utf8) + [UInt8(ascii: "=")] + $0.value }
        .joined(separator: [UInt8(ascii: ",")])
    )
    var names: [(kind: Kind, text: [UInt8])] = []
    for name in certificate._subjectAlternativeNames() {
      let bytes = Array(name.contents)
      switch name.nameType {
      case .dnsName: names.append((.dns, bytes))
      case .email: names.append((.email, bytes))
      case .uri: names.append((.uri, bytes))
      case .ipAddress: names.append((.ipAddress, Array(Self.ipAddressText(bytes).utf8)))
      default: break
      }
    }
    self.alternativeNames = names
  }

  /// The hosts that the certificate is for, in lower case: its DNS names, or, without any, its
  /// common name.
  var hosts: [String] {
    let names = self.alternativeNames.filter { $0.kind == .dns }.map(\.text)
    return (names.isEmpty ? [self.commonName].compactMap(\.self) : names)
      .map { String(decoding: $0, as: UTF8.self).lowercased() }
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

  private struct Attribute {
    let type: [UInt8]
    let value: [UInt8]
  }

  /// The fields of a certificate's TBSCertificate, from its serial number on.
  private static func fields(der: [UInt8]) -> [Element] {
    guard let certificate = Self.element(der[...]),
      let tbs = Self.element(certificate.contents)
    else { return [] }
    var fields = Self.elements(tbs.contents)
    // The version is optional and explicitly tagged [0].
    if fields.first?.tag == 0xA0 { fields.removeFirst() }
    return fields
  }

  /// Whether the certificate's key usage (RFC 5280 section 4.2.1.3) rules out that it vouches for
  /// others.
  var mayNotSign: Bool {
    guard let extensions = Self.fields(der: self.der).first(where: { $0.tag == 0xA3 }),
      let list = Self.element(extensions.contents)
    else { return false }
    for entry in Self.elements(list.contents) {
      let parts = Self.elements(entry.contents)
      guard let type = parts.first, Array(type.contents) == [0x55, 0x1D, 0x0F],
        let bits = parts.last.flatMap({ Self.element($0.contents) })
      else { continue }
      // A bit string: how many bits of its last byte are none, and then the bits; the sixth is
      // keyCertSign.
      return (bits.contents.dropFirst().first ?? 0) & 0x04 == 0
    }
    return false
  }

  /// Whether its key is one of RSA (RFC 8017 appendix A.1); the others go with ECDSA's cipher suites.
  var hasRSAKey: Bool {
    let fields = Self.fields(der: self.der)
    // serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo
    guard fields.count > 5, let algorithm = Self.element(fields[5].contents),
      let type = Self.element(algorithm.contents)
    else { return false }
    return Array(type.contents) == [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01]
  }

  /// The subject's attributes, in order.
  private static func subjectAttributes(der: [UInt8]) -> [Attribute] {
    let fields = Self.fields(der: der)
    // serialNumber, signature, issuer, validity, subject
    guard fields.count > 4 else { return [] }
    var attributes: [Attribute] = []
    for relative in Self.elements(fields[4].contents) {
      for attribute in Self.elements(relative.contents) {
        let parts = Self.elements(attribute.contents)
        guard parts.count == 2 else { continue }
        attributes.append(
          Attribute(type: Array(parts[0].contents), value: Array(parts[1].contents))
        )
      }
    }
    return attributes
  }

  private static let commonNameType: [UInt8] = [0x55, 0x04, 0x03]

  /// The attribute types that RFC 2253 section 2.3 names; others are written as their OID.
  private static func label(_ type: [UInt8]) -> String {
    if type.count == 3, type[0] == 0x55, type[1] == 0x04 {
      switch type[2] {
      case 3: return "CN"
      case 6: return "C"
      case 7: return "L"
      case 8: return "ST"
      case 9: return "STREET"
      case 10: return "O"
      case 11: return "OU"
      default: break
      }
    }
    var numbers: [Int] = []
    var number = 0
    for byte in type {
      number = number << 7 | Int(byte & 0x7F)
      if byte & 0x80 == 0 {
        numbers.append(number)
        number = 0
      }
    }
    guard let first = numbers.first else { return "" }
    // X.690 section 8.19.4: the first two arcs share a number.
    let root = min(first / 40, 2)
    return ([root, first - 40 * root] + numbers.dropFirst()).map(String.init).joined(separator: ".")
  }
}
