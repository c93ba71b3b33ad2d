import GRPCEngineWire
import NIOCore
import Testing

struct MessageDecoderTests {
  @Test("Messages come out whole however their bytes are split, drained at once or later")
  func everySplit() throws {
    let messages: [[UInt8]] = [[], [1, 2, 3], [4]]
    let bytes = messages.flatMap { framed($0, compressed: $0.count == 1) }
    // One bit for each place where a payload may end.
    for cuts in 0..<(1 << (bytes.count - 1)) where cuts.nonzeroBitCount <= 6 {
      let payloads = split(bytes, at: cuts)
      for drainsAtOnce in [true, false] {
        var decoder = MessageDecoder(maximumLength: 3)
        var received: [ReceivedMessage] = []
        for payload in payloads {
          decoder.append(payload)
          if drainsAtOnce { received += try drain(&decoder) }
        }
        received += try drain(&decoder)
        try #require(received.map { Array($0.payload.readableBytesView) } == messages, "\(cuts)")
        try #require(received.map(\.isCompressed) == [false, false, true], "\(cuts)")
        try #require(!decoder.hasPartialMessage && decoder.bufferedBytes == 0, "\(cuts)")
      }
    }
  }

  @Test("The counts follow every byte of a message")
  func counts() throws {
    let bytes = framed([1, 2, 3], compressed: false)
    var decoder = MessageDecoder(maximumLength: .max)
    #expect(!decoder.hasPartialMessage)
    for (index, byte) in bytes.enumerated() {
      decoder.append(ByteBuffer(bytes: [byte]))
      let message = try decoder.next()
      let isLast = index == bytes.count - 1
      #expect((message != nil) == isLast)
      #expect(decoder.hasPartialMessage == !isLast)
      #expect(decoder.missingBytes == (index < 4 || isLast ? nil : bytes.count - index - 1))
      #expect(decoder.bufferedBytes == (isLast ? 0 : index + 1))
    }
  }

  @Test("Bytes that are not yet read count as held, and not as missing")
  func unreadBytes() throws {
    var decoder = MessageDecoder(maximumLength: .max)
    decoder.append(ByteBuffer(bytes: framed([1, 2, 3, 4], compressed: false).prefix(6)))
    #expect(decoder.bufferedBytes == 6)
    #expect(try decoder.next() == nil)
    #expect(decoder.missingBytes == 3)
    decoder.append(ByteBuffer(bytes: [2]))
    decoder.append(ByteBuffer(bytes: [3]))
    #expect(decoder.missingBytes == 1)
    #expect(decoder.bufferedBytes == 8)
    decoder.append(ByteBuffer(bytes: [4, 0]))
    #expect(decoder.missingBytes == 0)
    #expect(try decoder.next()?.payload == ByteBuffer(bytes: [1, 2, 3, 4]))
    #expect(decoder.missingBytes == nil)
    #expect(try decoder.next() == nil)
    #expect(decoder.hasPartialMessage)
  }

  @Test("A message within one payload is a slice of it")
  func zeroCopy() throws {
    let payload = ByteBuffer(
      bytes: framed([1, 2], compressed: false) + framed([3], compressed: true)
    )
    var decoder = MessageDecoder(maximumLength: .max)
    decoder.append(payload)
    let first = try #require(try decoder.next())
    let second = try #require(try decoder.next())
    #expect(address(of: first.payload) == address(of: payload, offset: 5))
    #expect(address(of: second.payload) == address(of: payload, offset: 12))
  }

  @Test("A message whose prefix came in a payload of its own is a slice too", arguments: [1, 4, 5])
  func zeroCopyAfterPrefix(cut: Int) throws {
    let bytes = framed([1, 2, 3], compressed: false)
    let body = ByteBuffer(bytes: bytes.dropFirst(cut))
    for drainsAtOnce in [true, false] {
      var decoder = MessageDecoder(maximumLength: .max)
      decoder.append(ByteBuffer(bytes: bytes.prefix(cut)))
      if drainsAtOnce { #expect(try decoder.next() == nil) }
      decoder.append(body)
      let message = try #require(try decoder.next())
      #expect(address(of: message.payload) == address(of: body, offset: 5 - cut))
    }
  }

  @Test("A message at the limit passes, one past it does not", arguments: [0, 1, 70_000])
  func limits(limit: Int) throws {
    var decoder = MessageDecoder(maximumLength: limit)
    let message = [UInt8](repeating: 1, count: limit)
    decoder.append(ByteBuffer(bytes: framed(message, compressed: false)))
    #expect(try decoder.next()?.payload.readableBytes == limit)
    decoder.append(ByteBuffer(bytes: prefix(flag: 0, length: UInt32(limit + 1))))
    #expect(throws: MessageCodecError(.tooLarge(length: limit + 1, limit: limit))) {
      try decoder.next()
    }
  }

  @Test("A bad prefix is refused, in one piece and byte by byte, each time it is asked for")
  func badPrefixes() {
    let cases: [([UInt8], MessageCodecError)] = [
      (prefix(flag: 2, length: 0), MessageCodecError(.badFlag(2))),
      (prefix(flag: 255, length: .max), MessageCodecError(.badFlag(255))),
      (
        prefix(flag: 1, length: .max),
        MessageCodecError(.tooLarge(length: Int(UInt32.max), limit: 9))
      ),
    ]
    for (bytes, error) in cases {
      for payloads in [[bytes], bytes.map { [$0] }] {
        var decoder = MessageDecoder(maximumLength: 9)
        for payload in payloads { decoder.append(ByteBuffer(bytes: payload)) }
        for _ in 0..<2 {
          #expect(throws: error) { try decoder.next() }
          decoder.append(ByteBuffer(bytes: framed([1], compressed: false)))
        }
      }
    }
  }

  @Test("The length that a prefix announces buys no memory")
  func reservations() throws {
    var decoder = MessageDecoder(maximumLength: .max)
    decoder.append(ByteBuffer(bytes: prefix(flag: 0, length: .max) + [1]))
    #expect(try decoder.next() == nil)
    #expect(decoder.missingBytes == Int(UInt32.max) - 1)
    #expect(decoder.reservedBytes <= 4096)
    for _ in 0..<64 {
      decoder.append(ByteBuffer(repeating: 1, count: 16_384))
      #expect(try decoder.next() == nil)
    }
    #expect(decoder.bufferedBytes == 5 + 1 + 1 << 20)
    // Four times what has arrived, and the next power of two.
    #expect(decoder.reservedBytes <= 8 << 20)
  }

  @Test("A message that has begun reserves no more than a few times what has come")
  func beginnings() throws {
    var decoder = MessageDecoder(maximumLength: .max)
    decoder.append(ByteBuffer(bytes: prefix(flag: 0, length: 1 << 20)))
    decoder.append(ByteBuffer(repeating: 1, count: 8300))
    #expect(try decoder.next() == nil)
    #expect(decoder.reservedBytes <= 8 * 8300)
  }

  @Test("Nothing is reserved for what the peer may not send yet")
  func windows() throws {
    var decoder = MessageDecoder(maximumLength: .max)
    decoder.append(ByteBuffer(bytes: prefix(flag: 0, length: 4 << 20)), mayFollow: 65_530)
    decoder.append(ByteBuffer(repeating: 1, count: 60_000), mayFollow: 5530)
    #expect(try decoder.next() == nil)
    #expect(decoder.reservedBytes <= 65_536)
    decoder.append(ByteBuffer(repeating: 1, count: 5530), mayFollow: -1)
    #expect(try decoder.next() == nil)
    #expect(decoder.reservedBytes <= 65_536)
    decoder.append(ByteBuffer(repeating: 1, count: (4 << 20) - 65_530), mayFollow: 0)
    #expect(try decoder.next()?.payload.readableBytes == 4 << 20)
  }

  @Test("A message of many payloads gets one buffer of its own size")
  func gathering() throws {
    let message = (0..<65_536).map { UInt8(truncatingIfNeeded: $0 / 7) }
    let bytes = framed(message, compressed: false)
    var decoder = MessageDecoder(maximumLength: .max)
    var received: ReceivedMessage?
    for start in stride(from: 0, to: bytes.count, by: 16_384) {
      decoder.append(ByteBuffer(bytes: bytes[start..<min(start + 16_384, bytes.count)]))
      received = try decoder.next()
      if start == 0 { #expect(decoder.reservedBytes == 65_536) }
    }
    #expect(received.map { Array($0.payload.readableBytesView) } == message)
    #expect(received?.payload.capacity == 65_536)
  }

  @Test("What a message holds does not change when the next one arrives")
  func independence() throws {
    var decoder = MessageDecoder(maximumLength: .max)
    let bytes = framed([1, 2, 3], compressed: false)
    var kept: [ReceivedMessage] = []
    for _ in 0..<3 {
      for part in [bytes.prefix(7), bytes.dropFirst(7)] {
        decoder.append(ByteBuffer(bytes: part))
        kept += try drain(&decoder)
      }
    }
    #expect(
      kept.map { Array($0.payload.readableBytesView) } == [[1, 2, 3], [1, 2, 3], [1, 2, 3]]
    )
  }

  @Test("Empty payloads change nothing")
  func emptyPayloads() throws {
    var decoder = MessageDecoder(maximumLength: .max)
    for byte in framed([9], compressed: false) {
      decoder.append(ByteBuffer())
      decoder.append(ByteBuffer(bytes: [byte]))
      decoder.append(ByteBuffer())
    }
    #expect(try decoder.next()?.payload == ByteBuffer(bytes: [9]))
    #expect(try decoder.next() == nil)
    #expect(!decoder.hasPartialMessage)
  }

  private func drain(_ decoder: inout MessageDecoder) throws -> [ReceivedMessage] {
    var messages: [ReceivedMessage] = []
    while let message = try decoder.next() { messages.append(message) }
    return messages
  }

  private func split(_ bytes: [UInt8], at cuts: Int) -> [ByteBuffer] {
    var payloads: [ByteBuffer] = []
    var start = 0
    for end in 1...bytes.count where end == bytes.count || cuts & (1 << (end - 1)) != 0 {
      payloads.append(ByteBuffer(bytes: bytes[start..<end]))
      start = end
    }
    return payloads
  }

  private func prefix(flag: UInt8, length: UInt32) -> [UInt8] {
    [flag] + withUnsafeBytes(of: length.bigEndian, Array.init)
  }

  private func framed(_ message: [UInt8], compressed: Bool) -> [UInt8] {
    var buffer = ByteBuffer()
    MessageFramer.writePrefix(compressed: compressed, length: message.count, into: &buffer)
    return Array(buffer.readableBytesView) + message
  }

  private func address(of buffer: ByteBuffer, offset: Int = 0) -> UnsafeRawPointer? {
    buffer.withUnsafeReadableBytes { $0.baseAddress.map { UnsafeRawPointer($0) + offset } }
  }

  @Test("A small part of a large buffer is let go of it, by a copy", arguments: [0, 1, 10, 600])
  func released(length: Int) throws {
    var buffer = ByteBuffer(repeating: 7, count: 100_000)
    let slice = buffer.readSlice(length: length)
    let payload = try #require(slice)
    let message = ReceivedMessage(payload: payload, isCompressed: true).released()
    #expect(message.payload == payload && message.isCompressed)
    #expect(message.payload.storageCapacity <= 1024)
  }

  @Test("The larger part of a buffer is not copied")
  func kept() throws {
    var buffer = ByteBuffer(repeating: 7, count: 100_000)
    let slice = buffer.readSlice(length: 90_000)
    let payload = try #require(slice)
    let message = ReceivedMessage(payload: payload, isCompressed: false).released()
    #expect(message.payload.storageCapacity == payload.storageCapacity)
  }
}
