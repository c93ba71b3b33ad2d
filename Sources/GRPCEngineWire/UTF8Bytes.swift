extension String {
  /// Runs `body` on the string's UTF-8 bytes, without copying them when they lie in one piece, as
  /// those of every native Swift string do.
  @inline(__always)
  func withUTF8Bytes<Result>(_ body: (UnsafeBufferPointer<UInt8>) -> Result) -> Result {
    if let result = utf8.withContiguousStorageIfAvailable(body) { return result }
    return Array(utf8).withUnsafeBufferPointer(body)
  }

  /// The string, or the beginning of one with more than so many bytes.
  public func cut(toBytes count: Int) -> String {
    let bytes = self.utf8
    guard bytes.count > count else { return self }
    var end = bytes.index(bytes.startIndex, offsetBy: count)
    // Not in the middle of a character's bytes.
    while end > bytes.startIndex, bytes[end] & 0xC0 == 0x80 { end = bytes.index(before: end) }
    return String(decoding: bytes[..<end], as: UTF8.self)
  }
}
