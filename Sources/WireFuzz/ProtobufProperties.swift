internal import GRPCEngineWire
internal import NIOCore

/// What `ProtobufWriter` writes is what a plain encoder gives, which builds each message as an array
/// of its own.
///
/// Input: a script, a byte for each step.
func protobufViolation(_ input: inout ByteBuffer) -> String? {
  let writer = ProtobufWriter(capacity: 1)
  var open: [(begin: Int, tag: UInt64)] = []
  var expected: [[UInt8]] = [[]]
  func append(_ bytes: [UInt8]) { expected[expected.count - 1] += bytes }
  func close() {
    guard let (begin, tag) = open.popLast(), let body = expected.popLast() else { return }
    writer.endLength(begin)
    append(varint(tag) + varint(UInt64(body.count)) + body)
  }
  while let step = input.readInteger(as: UInt8.self) {
    let argument = UInt64(input.readInteger(as: UInt8.self) ?? 0)
    switch step % 8 {
    case 0:
      let value = argument &* 0x0123_4567_89ab_cdef >> (UInt64(step) / 4)
      writer.writeVarint(value)
      append(varint(value))
    case 1:
      writer.writeVarint(-Int64(argument))
      append(varint(UInt64(bitPattern: -Int64(argument))))
    case 2:
      writer.writeFixed(UInt32(argument) << 24 | 0x0605)
      append([0x05, 0x06, 0, UInt8(argument)])
    case 3:
      writer.writeFixed(argument << 56 | 0x07)
      append([7, 0, 0, 0, 0, 0, 0, UInt8(argument)])
    case 4:
      let bytes = (0..<Int(argument) * Int(step / 8)).map { UInt8(truncatingIfNeeded: $0) }
      bytes.withUnsafeBytes { writer.write($0) }
      append(bytes)
    case 5, 6:
      guard open.count < 20 else { continue }
      open.append((writer.beginLength(tag: argument + 1), argument + 1))
      expected.append([])
    default:
      close()
    }
  }
  while !open.isEmpty { close() }
  let written = writer.withContents { Array($0) }
  return written == expected[0] ? nil : "wrote \(written.count) bytes, or others"
}

private func varint(_ value: UInt64) -> [UInt8] {
  value < 0x80 ? [UInt8(value)] : [UInt8(value & 0x7f) | 0x80] + varint(value >> 7)
}
