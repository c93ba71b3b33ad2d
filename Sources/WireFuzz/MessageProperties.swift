internal import GRPCEngineWire
internal import NIOCore

/// The decoder says the same of a byte stream however it is cut into payloads, holds no more memory
/// than the stream's length warrants, and never disagrees with a decoder that reads it in one go.
///
/// Input: a limit, a seed for the cuts, the stream.
func decoderViolation(_ input: inout ByteBuffer) -> String? {
  guard let limit = input.readInteger(as: UInt16.self),
    let seed = input.readInteger(as: UInt16.self)
  else { return nil }
  let expected = referenceDecoding(Array(input.readableBytesView), limit: Int(limit))
  var state = UInt64(seed)
  for drainsAtOnce in [true, false] {
    var decoder = MessageDecoder(maximumLength: Int(limit))
    var decoded = Decoding()
    var rest = input
    while rest.readableBytes > 0 {
      // Mostly short payloads, some empty, some long.
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      let length = Int(state >> 33) & (state >> 60 == 0 ? 0xfff : 0xf)
      guard let payload = rest.readSlice(length: min(length, rest.readableBytes)) else { break }
      decoder.append(payload)
      if drainsAtOnce { decoded.drain(&decoder) }
    }
    decoded.drain(&decoder)
    if decoded.messages != expected.messages { return "other messages when split" }
    if decoded.error != expected.error { return "\(String(describing: decoded.error)) when split" }
    if decoded.error == nil {
      if decoder.hasPartialMessage != (expected.leftover > 0) { return "partial message unnoticed" }
      if decoder.missingBytes != expected.missing { return "wrong count of missing bytes" }
      if decoder.bufferedBytes != expected.leftover { return "holds other than what is left over" }
    }
    if decoder.reservedBytes > max(4096, 8 * input.readableBytes) { return "reserves too much" }
  }
  return nil
}

private struct Decoding {
  var messages: [[UInt8]] = []
  var error: MessageCodecError?
  var leftover = 0
  var missing: Int?

  mutating func drain(_ decoder: inout MessageDecoder) {
    do throws(MessageCodecError) {
      while let message = try decoder.next() {
        messages.append([message.isCompressed ? 1 : 0] + message.payload.readableBytesView)
      }
    } catch {
      self.error = error
    }
  }
}

/// The specification, word for word, on an array.
private func referenceDecoding(_ bytes: [UInt8], limit: Int) -> Decoding {
  var decoding = Decoding()
  var rest = bytes[...]
  while rest.count >= 5, let flag = rest.first {
    let length = rest.dropFirst().prefix(4).reduce(0) { $0 << 8 | Int($1) }
    if flag > 1 {
      decoding.error = MessageCodecError(.badFlag(flag))
      return decoding
    }
    if length > limit {
      decoding.error = MessageCodecError(.tooLarge(length: length, limit: limit))
      return decoding
    }
    if rest.count < 5 + length {
      decoding.missing = 5 + length - rest.count
      break
    }
    decoding.messages.append([flag] + rest.dropFirst(5).prefix(length))
    rest = rest.dropFirst(5 + length)
  }
  decoding.leftover = rest.count
  return decoding
}

/// Whatever is decompressed, its length keeps to the limit.
///
/// Input: algorithm, limit, compressed bytes.
func inflatingViolation(_ input: inout ByteBuffer) -> String? {
  guard let choice = input.readInteger(as: UInt8.self),
    let limit = input.readInteger(as: UInt16.self)
  else { return nil }
  let algorithm = CompressionAlgorithm.allCases[Int(choice) % 3]
  do throws(MessageCodecError) {
    let output = try Compression.decompress(input, algorithm, maximumLength: Int(limit))
    if algorithm == .identity { return "identity decompressed" }
    if output.readableBytes > Int(limit) { return "passed the limit" }
    let again = try Compression.decompress(
      input,
      algorithm,
      maximumLength: output.readableBytes
    )
    return again == output ? nil : "another limit gave another output"
  } catch {
    return error.status.code == .ok ? "an error with status OK" : nil
  }
}

/// Every message comes back from compression at its own length and not one byte below.
///
/// Input: algorithm, number of repetitions, message.
func deflatingViolation(_ input: inout ByteBuffer) -> String? {
  guard let choice = input.readInteger(as: UInt8.self),
    let repetitions = input.readInteger(as: UInt8.self)
  else { return nil }
  let algorithm: CompressionAlgorithm = choice & 1 == 0 ? .deflate : .gzip
  var message = ByteBuffer()
  for _ in 0...repetitions { message.writeImmutableBuffer(input) }
  let length = message.readableBytes
  do throws(MessageCodecError) {
    let compressed = try Compression.compress(message, algorithm)
    let output = try Compression.decompress(compressed, algorithm, maximumLength: length)
    if output != message { return "another message came back" }
    if length == 0 { return nil }
    do throws(MessageCodecError) {
      _ = try Compression.decompress(compressed, algorithm, maximumLength: length - 1)
      return "the limit did not hold"
    } catch {
      let expected = MessageCodecError(.decompressedTooLarge(limit: length - 1))
      return error == expected ? nil : "\(error)"
    }
  } catch {
    return "\(error)"
  }
}
