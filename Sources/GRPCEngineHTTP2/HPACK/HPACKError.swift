/// A header block that can't be decoded, so that nothing of its connection can any more (RFC 7541;
/// COMPRESSION_ERROR in HTTP/2).
public enum HPACKError: Error, Hashable, Sendable {
  /// The block ends amid a field.
  case truncated
  /// A number that no table or string can have.
  case integerTooLarge
  /// No field has that index.
  case badIndex
  /// A string with bits that mean nothing, or the end-of-string symbol.
  case badHuffmanCode
  /// A table size that was not offered, or one that comes behind a field.
  case badTableSize
}
