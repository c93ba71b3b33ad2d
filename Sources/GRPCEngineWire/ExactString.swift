internal import Glibc

/// A string that equals those of the same bytes only: what a peer sends, as a key.
///
/// Swift's own strings are equal when they are canonically equivalent, so that `K`, the sign for
/// kelvin (U+212A), is the letter. To whoever refused a path before the server it is another one.
public struct ExactString: Hashable, Sendable, ExpressibleByStringLiteral {
  public let string: String

  @inlinable
  public init(_ string: String) { self.string = string }
  public init(stringLiteral string: String) { self.string = string }

  public static func == (left: Self, right: Self) -> Bool {
    left.string.withUTF8Bytes { left in
      right.string.withUTF8Bytes { right in
        let length = left.count
        guard length == right.count else { return false }
        guard let left = left.baseAddress, let right = right.baseAddress else { return true }
        return memcmp(left, right, length) == 0
      }
    }
  }

  public func hash(into hasher: inout Hasher) {
    self.string.withUTF8Bytes { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
  }
}
