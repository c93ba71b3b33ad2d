internal import GRPCEngineHTTP2
internal import GRPCEngineWire
internal import NIOCore

/// Bytes survive encoding, and text that decodes is what its bytes encode to, but for padding.
func base64Violation(_ input: inout ByteBuffer) -> String? {
  let bytes = Array(input.readableBytesView)
  if Base64.decode(Base64.encode(bytes)) != bytes { return "bytes changed" }
  let text = String(buffer: input)
  guard let decoded = Base64.decode(text) else { return nil }
  let unpadded = String(text.prefix { $0 != "=" })
  return Base64.encode(decoded) == unpadded ? nil : "two texts for the same bytes"
}

/// A status text survives as printable ASCII, and any header value decodes to something.
func percentEncodingViolation(_ input: inout ByteBuffer) -> String? {
  let text = String(buffer: input)
  let value = PercentEncoding.encode(text)
  if !Metadata.isValidASCIIValue(value) { return "not printable" }
  // Compared as bytes: equality of strings disregards how accents are composed.
  if !PercentEncoding.decode(value).utf8.elementsEqual(text.utf8) { return "text changed" }
  let decoded = PercentEncoding.decode(text)
  return decoded.utf8.count <= 3 * text.utf8.count ? nil : "decoding grew"
}

/// A timeout that is read can be written, and is the same or at most a unit longer when read again.
func timeoutViolation(_ input: inout ByteBuffer) -> String? {
  var numbers = input
  if let seconds = numbers.readInteger(as: Int64.self),
    let attoseconds = numbers.readInteger(as: Int64.self)
  {
    let duration =
      Duration.seconds(seconds)
      + Duration(secondsComponent: 0, attosecondsComponent: attoseconds)
    guard let read = Timeout.parse(Timeout.encode(duration)) else { return "unreadable" }
    let largest = Duration.seconds(99_999_999 * 3600)
    if read < min(duration, largest) { return "cut short" }
  }
  let value = String(buffer: input)
  guard let duration = Timeout.parse(value) else { return nil }
  if duration < .zero { return "negative" }
  guard let again = Timeout.parse(Timeout.encode(duration)) else { return "unreadable" }
  return duration == .zero || again == duration ? nil : "\(value) became \(again)"
}

/// Received metadata can be sent on and is then the same; keys are never what the transport consumes.
///
/// Input: lines of `key value`.
func metadataViolation(_ input: inout ByteBuffer) -> String? {
  var headers = HeaderList()
  for line in input.readableBytesView.split(separator: UInt8(ascii: "\n")) {
    let parts = line.split(separator: UInt8(ascii: " "), maxSplits: 1)
    guard let key = parts.first else { continue }
    // The connection refuses names that are not ASCII before they get here.
    if !key.allSatisfy({ $0 < 0x80 }) { continue }
    let value = parts.count > 1 ? String(decoding: parts[1], as: UTF8.self) : ""
    headers.append(String(decoding: key, as: UTF8.self), value)
  }
  let metadata = Metadata(received: headers)
  do throws(MalformedMetadata) {
    let validated = try Metadata(validating: headers)
    if validated.entries.count != metadata.entries.count { return "validation changed entries" }
  } catch {
    if headers.first(error.key) == nil { return "an unknown key is malformed" }
  }
  if metadata.entries.contains(where: { $0.key == "te" || $0.key.first == ":" }) {
    return "a consumed header is visible"
  }
  var sent = HeaderList()
  metadata.append(to: &sent)
  let sendable = metadata.entries.filter { Metadata.isValidKey($0.key) }
  let again = Metadata(received: sent)
  if again.entries.map(\.key) != sendable.map(\.key) { return "keys changed" }
  return again.entries.map(\.value) == sendable.map(\.value) ? nil : "values changed"
}

/// Nothing that reads a word of the request traps, and a path's parts make up the path again.
func wordsViolation(_ input: inout ByteBuffer) -> String? {
  let word = String(buffer: input)
  // Bytes, not characters, are compared: a combining mark hides the ASCII character before it.
  if ContentType.isGRPC(word), !word.lowercased().utf8.starts(with: "application/grpc".utf8) {
    return "not gRPC"
  }
  if let algorithm = CompressionAlgorithm(name: word), algorithm.name != word {
    return "two names for an algorithm"
  }
  if Metadata.isReserved(word), word.utf8.first != UInt8(ascii: ":"), !Metadata.isValidKey(word) {
    return "an impossible key is reserved"
  }
  guard let path = MethodPath(word) else { return nil }
  return "/\(path.service)/\(path.method)".utf8.elementsEqual(word.utf8) ? nil : "a path changed"
}
