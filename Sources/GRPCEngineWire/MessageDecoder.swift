public import NIOCore

/// A message as it came off the wire.
public struct ReceivedMessage: Sendable {
  public var payload: ByteBuffer

  /// Whether the payload is encoded as the call's `grpc-encoding` says.
  public var isCompressed: Bool

  public init(payload: ByteBuffer, isCompressed: Bool) {
    self.payload = payload
    self.isCompressed = isCompressed
  }

  /// The message in memory of its own, if it is a small part of a read buffer of a connection, which
  /// would be kept with it.
  public func released() -> ReceivedMessage {
    let length = self.payload.readableBytes
    if self.payload.storageCapacity <= max(2 * length, length + Self.smallChange) { return self }
    var own = ByteBuffer()
    own.reserveCapacity(length)
    own.writeImmutableBuffer(self.payload)
    return ReceivedMessage(payload: own, isCompressed: self.isCompressed)
  }

  /// Bytes that are not worth a copy.
  private static var smallChange: Int { 512 }
}

/// Takes the payloads of a stream's DATA frames and gives back the length-prefixed messages in them.
///
/// A message that lies in one payload is a slice of it, without a copy. One that spans payloads is
/// gathered in a buffer of its own, each byte copied once, whose size follows what has arrived: the
/// length that a peer announces buys it no memory. After ``next()`` has returned `nil`, nothing of the
/// payloads is held but the bytes of one unfinished message.
public struct MessageDecoder: Sendable {
  private let maximumLength: Int

  /// The payload that is being read, and those after it.
  private var current = ByteBuffer()
  private var later: CircularBuffer<ByteBuffer>?
  private var laterBytes = 0

  /// The first bytes of a prefix that spans payloads, and how many there are.
  private var prefixBits: UInt64 = 0
  private var prefixCount = 0

  /// Bytes that the peer may send after what was appended.
  private var mayFollow = Int.max

  /// The message whose prefix has been read, and what is gathered of it.
  private var announced: Prefix?
  private var gathered = ByteBuffer()

  /// - Parameter maximumLength: the longest message in bytes, its prefix not counted; `Int.max` for no
  ///   limit.
  public init(maximumLength: Int) {
    self.maximumLength = maximumLength
  }

  /// Adds a payload after those that were added before.
  ///
  /// - Parameter mayFollow: how many bytes the peer may send after it; no memory is reserved for more.
  public mutating func append(_ buffer: ByteBuffer, mayFollow: Int = .max) {
    self.mayFollow = max(0, mayFollow)
    if buffer.readableBytes == 0 { return }
    if unreadBytes == 0 {
      current = buffer
    } else {
      if later == nil { later = CircularBuffer(initialCapacity: 4) }
      later?.append(buffer)
      laterBytes += buffer.readableBytes
    }
  }

  /// - Returns: the next whole message, or `nil` until more payloads are appended.
  /// - Throws: ``MessageCodecError/Reason/badFlag(_:)`` or
  ///   ``MessageCodecError/Reason/tooLarge(length:limit:)`` as soon as the prefix shows it. The stream
  ///   can't be read past such a prefix: every later call throws the same.
  public mutating func next() throws(MessageCodecError) -> ReceivedMessage? {
    if announced == nil { announced = try readPrefix() }
    guard let prefix = announced, let payload = readBody(of: prefix.length) else { return nil }
    announced = nil
    return ReceivedMessage(payload: payload, isCompressed: prefix.isCompressed)
  }

  /// Whether the last ``next()``, which returned `nil`, left bytes of an unfinished message: at the end
  /// of a stream, it was truncated.
  public var hasPartialMessage: Bool { announced != nil || prefixCount > 0 }

  /// How many bytes are still to come of the message whose prefix ``next()`` has read; `nil` when there
  /// is none.
  public var missingBytes: Int? {
    announced.map { max(0, $0.length - gathered.readableBytes - unreadBytes) }
  }

  /// How many bytes have come that are in no message yet: those not yet read, and those of an unfinished
  /// message with its prefix.
  public var bufferedBytes: Int {
    let prefix = announced == nil ? prefixCount : MessageFramer.prefixLength
    return unreadBytes + prefix + gathered.readableBytes
  }

  /// How many bytes of memory are reserved to gather an unfinished message in.
  public var reservedBytes: Int { gathered.capacity }

  private var unreadBytes: Int { current.readableBytes + laterBytes }
}

// MARK: Prefix

extension MessageDecoder {
  private struct Prefix {
    var isCompressed: Bool
    var length: Int
  }

  private mutating func readPrefix() throws(MessageCodecError) -> Prefix? {
    if prefixCount == 0,
      let (flag, length) = current.peekMultipleIntegers(as: (UInt8, UInt32).self)
    {
      let prefix = try checkedPrefix(flag: flag, length: length)
      current.moveReaderIndex(forwardBy: MessageFramer.prefixLength)
      return prefix
    }
    while prefixCount < MessageFramer.prefixLength {
      guard let byte = current.readInteger(as: UInt8.self) else {
        if takeLater() { continue }
        return nil
      }
      prefixBits = prefixBits << 8 | UInt64(byte)
      prefixCount += 1
    }
    let prefix = try checkedPrefix(
      flag: UInt8(truncatingIfNeeded: prefixBits >> 32),
      length: UInt32(truncatingIfNeeded: prefixBits)
    )
    prefixBits = 0
    prefixCount = 0
    return prefix
  }

  private func checkedPrefix(
    flag: UInt8,
    length: UInt32
  ) throws(MessageCodecError) -> Prefix {
    if flag > 1 { throw MessageCodecError(.badFlag(flag)) }
    if Int(length) > maximumLength {
      throw MessageCodecError(.tooLarge(length: Int(length), limit: maximumLength))
    }
    return Prefix(isCompressed: flag == 1, length: Int(length))
  }
}

// MARK: Body

extension MessageDecoder {
  private mutating func readBody(of length: Int) -> ByteBuffer? {
    while true {
      let missing = length - gathered.readableBytes
      if missing == length, let whole = current.readSlice(length: length) {
        if current.readableBytes == 0 { _ = takeLater() }
        return whole
      }
      if let part = current.readSlice(length: min(missing, current.readableBytes)) {
        gather(part, of: length)
      }
      let isExhausted = current.readableBytes == 0 && !takeLater()
      if gathered.readableBytes == length {
        let whole = gathered
        gathered = ByteBuffer()
        return whole
      }
      if isExhausted { return nil }
    }
  }

  /// Copies a part of the announced message to those before it.
  private mutating func gather(_ part: ByteBuffer, of length: Int) {
    if part.readableBytes == 0 { return }
    if gathered.writableBytes < part.readableBytes {
      // Not all that was announced: an allocator that is in use gives memory that is in use.
      let arrived = gathered.readableBytes + part.readableBytes + unreadBytes
      let later = min(arrived * 3, mayFollow)
      gathered.reserveCapacity(min(length, max(Self.smallestReservation, arrived + later)))
    }
    gathered.writeImmutableBuffer(part)
  }

  /// Goes on to the next payload.
  ///
  /// - Returns: whether there is one. If not, the current payload is let go all the same: an empty
  ///   slice would keep the connection's read buffer in memory.
  private mutating func takeLater() -> Bool {
    if let next = later?.popFirst() {
      laterBytes -= next.readableBytes
      current = next
      return true
    }
    current = ByteBuffer()
    return false
  }

  /// A first reservation that is small beside what a stream costs anyway.
  private static var smallestReservation: Int { 4096 }
}
