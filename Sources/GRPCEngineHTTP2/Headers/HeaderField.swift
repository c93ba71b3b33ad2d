/// One field of a header list: a name and a value.
public struct HeaderField: Sendable {
  public let name: String
  public let value: String
  /// What RFC 7541 section 4.1 counts: the octets of name and value as they came, and 32.
  public let size: Int
  /// The octets of the name as it came: what is no UTF-8 is longer in a string.
  let nameLength: Int
  private let traits: Traits

  /// What is found once, as a field comes, of all that is asked of it for each call that repeats it.
  private struct Traits: OptionSet, Sendable {
    let rawValue: UInt8
    static let malformed = Traits(rawValue: 1)
    static let pseudo = Traits(rawValue: 2)
    static let repeated = Traits(rawValue: 4)
  }

  /// What is added to the octets of each field.
  static let overhead = 32

  /// A field to send. Nothing is checked.
  ///
  /// - Parameter isRepeated: whether many answers of a connection have it, so that it is worth a place in
  ///   the peer's table.
  public init(_ name: String, _ value: String, isRepeated: Bool = false) {
    self.name = name
    self.value = value
    self.nameLength = name.utf8.count
    self.size = self.nameLength + value.utf8.count + Self.overhead
    self.traits = isRepeated ? .repeated : []
  }

  /// A field as a peer's, found to be well-formed or not.
  public init(received name: String, _ value: String) {
    self.init(
      received: name,
      value,
      lengths: (name.utf8.count, value.utf8.count),
      isNameValid: Self.isValidName(name.utf8),
      isValueValid: Self.isValidValue(value.utf8)
    )
  }

  /// - Parameters:
  ///   - lengths: the octets of name and value as they came.
  ///   - isNameValid: see `isValidName`; what a pseudo-header's is, is of no account.
  init(
    received name: String,
    _ value: String,
    lengths: (name: Int, value: Int),
    isNameValid: Bool,
    isValueValid: Bool
  ) {
    self.name = name
    self.value = value
    self.nameLength = lengths.name
    self.size = lengths.name + lengths.value + Self.overhead
    var traits: Traits = []
    if name.utf8.first == UInt8(ascii: ":") {
      traits.insert(.pseudo)
    } else if !isNameValid || Self.isConnectionSpecific(name) {
      traits.insert(.malformed)
    }
    if !isValueValid { traits.insert(.malformed) }
    self.traits = traits
  }

  /// Whether the name begins with a colon: the field is HTTP/2's own (RFC 9113 section 8.3).
  public var isPseudo: Bool { self.traits.contains(.pseudo) }

  /// Whether a received field makes its message malformed (RFC 9113 sections 8.2.1 and 8.2.2).
  public var isMalformed: Bool { self.traits.contains(.malformed) }

  var isRepeated: Bool { self.traits.contains(.repeated) }
}

extension HeaderField: Equatable {
  public static func == (left: Self, right: Self) -> Bool {
    left.name == right.name && left.value == right.value
  }
}

// MARK: What HTTP/2 allows (RFC 9113 section 8.2.1)

extension HeaderField {
  /// Whether a name is made of lower-case token characters, and not empty; a pseudo-header's colon is not
  /// one.
  public static func isValidName(_ name: some Collection<UInt8>) -> Bool {
    !name.isEmpty && name.allSatisfy { Self.isValidInName($0) }
  }

  /// Whether a value has no control characters but tabs. Blanks at its ends are borne although
  /// RFC 9113 forbids them: gRPC's own clients send what their users put into metadata.
  public static func isValidValue(_ value: some Sequence<UInt8>) -> Bool {
    value.allSatisfy { Self.isValidInValue($0) }
  }

  static func isValidInName(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
      UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: "."):
      true
    case UInt8(ascii: "!"), UInt8(ascii: "#"), UInt8(ascii: "$"), UInt8(ascii: "%"),
      UInt8(ascii: "&"), UInt8(ascii: "'"), UInt8(ascii: "*"), UInt8(ascii: "+"),
      UInt8(ascii: "^"), UInt8(ascii: "`"), UInt8(ascii: "|"), UInt8(ascii: "~"):
      true
    default: false
    }
  }

  static func isValidInValue(_ byte: UInt8) -> Bool {
    byte >= 0x20 && byte != 0x7F || byte == UInt8(ascii: "\t")
  }

  /// Whether a field speaks of one connection, which HTTP/2 has no use for (section 8.2.2).
  public static func isConnectionSpecific(_ name: String) -> Bool {
    switch name.utf8.count {
    case 7: name == "upgrade"
    case 10: name == "connection" || name == "keep-alive"
    case 16: name == "proxy-connection"
    case 17: name == "transfer-encoding"
    default: false
    }
  }
}
