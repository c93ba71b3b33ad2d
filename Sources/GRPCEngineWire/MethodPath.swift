/// A call's `:path`, taken apart: `/package.Service/Method`.
public struct MethodPath: Hashable, Sendable {
  /// The service with its package, which may itself contain `/`.
  public let service: Substring
  public let method: Substring

  /// - Returns: `nil` unless `path` starts with `/` and has a service and a method, parted by its last
  ///   `/`.
  public init?(_ path: String) {
    let bytes = path.utf8
    guard bytes.first == UInt8(ascii: "/"),
      let separator = bytes.lastIndex(of: UInt8(ascii: "/")), separator > bytes.startIndex
    else { return nil }
    service = path[bytes.index(after: bytes.startIndex)..<separator]
    method = path[bytes.index(after: separator)...]
    if service.isEmpty || method.isEmpty { return nil }
  }
}
