package import NIOCore

/// Something that must hold for every input that a peer may send.
///
/// The first byte of an input chooses the property, the rest is what the peer sent.
package struct WireProperty: Sendable {
  package let name: String

  /// - Returns: what is wrong, or `nil` when the property holds.
  package let violation: @Sendable (inout ByteBuffer) -> String?

  /// All properties; new ones go to the end, because kept cases name them by number.
  package static let all: [WireProperty] = [
    WireProperty(name: "decoder", violation: decoderViolation),
    WireProperty(name: "inflating", violation: inflatingViolation),
    WireProperty(name: "deflating", violation: deflatingViolation),
    WireProperty(name: "base64", violation: base64Violation),
    WireProperty(name: "percent encoding", violation: percentEncodingViolation),
    WireProperty(name: "timeout", violation: timeoutViolation),
    WireProperty(name: "metadata", violation: metadataViolation),
    WireProperty(name: "words", violation: wordsViolation),
    WireProperty(name: "protobuf", violation: protobufViolation),
  ]

  /// The first byte of an input for the property of that name.
  package static let protobuf: UInt8 = 8

  /// Runs one input. What traps is a find too, so this may not return.
  package static func firstViolation(by input: [UInt8]) -> String? {
    var bytes = ByteBuffer(bytes: input)
    guard let choice = bytes.readInteger(as: UInt8.self) else { return nil }
    let property = all[Int(choice) % all.count]
    return property.violation(&bytes).map { "\(property.name): \($0)" }
  }
}
