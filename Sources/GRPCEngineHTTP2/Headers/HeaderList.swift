/// The fields of a header block, in order, with repeated names kept.
public struct HeaderList: Sendable, Equatable {
  public private(set) var fields: [HeaderField]

  public init(_ fields: [HeaderField] = []) { self.fields = fields }

  /// Adds a field to send.
  public mutating func append(_ name: String, _ value: String) {
    self.fields.append(HeaderField(name, value))
  }

  public mutating func append(_ field: HeaderField) { self.fields.append(field) }

  public mutating func append(contentsOf list: HeaderList) {
    self.fields.append(contentsOf: list.fields)
  }

  public mutating func reserveCapacity(_ count: Int) { self.fields.reserveCapacity(count) }

  /// The value of the first field with a name.
  public func first(_ name: String) -> String? { self.fields.first { $0.name == name }?.value }

  /// Whether another list is this one, or a copy of it of which neither has been changed.
  func isSame(as other: HeaderList) -> Bool {
    self.fields.withUnsafeBufferPointer { own in
      other.fields.withUnsafeBufferPointer {
        own.baseAddress == $0.baseAddress && own.count == $0.count
      }
    }
  }

  /// What RFC 9113 section 6.5.2 counts: names, values and 32 bytes a field.
  public var size: Int { self.fields.reduce(0) { $0 + $1.size } }
}

extension HeaderList: ExpressibleByDictionaryLiteral {
  public init(dictionaryLiteral elements: (String, String)...) {
    self.init(elements.map { HeaderField($0, $1) })
  }
}

/// A header block of a peer, decoded.
///
/// One that comes again, byte for byte, is the same object: what was found out about its fields once may be
/// kept with it.
public final class HeaderBlock {
  public let list: HeaderList
  /// The size of the whole list; where that is more than was asked for, `list` has its beginning.
  public let size: Int
  /// What `content-length` says.
  public private(set) lazy var contentLength = ContentLength(self.list)
  /// What the layer above keeps with the block, for when it comes again.
  public var attachment: AnyObject?

  public init(_ list: HeaderList, size: Int) {
    self.list = list
    self.size = size
  }

  /// A list as if it had come.
  public convenience init(received list: HeaderList) {
    let fields = list.fields.map { HeaderField(received: $0.name, $0.value) }
    self.init(HeaderList(fields), size: list.size)
  }
}

/// The length that a request says it has (RFC 9110 section 8.6).
public enum ContentLength: Hashable, Sendable {
  case none
  case bytes(Int)
  /// No number, or more than one.
  case malformed

  init(_ list: HeaderList) {
    self = .none
    for field in list.fields where field.nameLength == 14 && field.name == "content-length" {
      let length = Self.parse(field.value)
      guard let length, self == .none || self == .bytes(length) else {
        self = .malformed
        return
      }
      self = .bytes(length)
    }
  }

  public var value: Int? { if case .bytes(let count) = self { count } else { nil } }

  /// Digits and nothing else; `Int.init` takes a sign.
  private static func parse(_ text: String) -> Int? {
    guard text.utf8.allSatisfy({ $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") }) else {
      return nil
    }
    return Int(text)
  }
}
