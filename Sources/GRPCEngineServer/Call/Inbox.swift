package import GRPCEngineWire
internal import NIOCore

/// Messages of a call that wait for its servicer, in their order.
///
/// Small ones lie together, each with its prefix as it came: a buffer for each would cost twenty times its
/// bytes, which are all that the peer's windows know of. None keeps the read that it came with.
package struct Inbox {
  private enum Part {
    case message(ReceivedMessage)
    case small(ByteBuffer)
  }

  /// The longest message that is put together with others.
  private static let smallest = 512
  /// Bytes of a part, read or not, behind which the next one begins: what has been read is let go.
  private static let partSize = 16 * 1024

  /// From `head` on. An array allocates less than a `CircularBuffer` for the one message of most calls.
  private var parts: [Part] = []
  private var head = 0

  package init() {}

  package var isEmpty: Bool { self.head == self.parts.count }

  package mutating func append(_ message: ReceivedMessage) {
    let length = message.payload.readableBytes
    guard length <= Self.smallest else {
      self.parts.append(.message(message.released()))
      return
    }
    if let last = self.parts.indices.last, last >= self.head,
      case .small(var packed) = self.parts[last], packed.writerIndex < Self.partSize
    {
      // Taken out, so that it is written to in its place.
      self.parts[last] = .small(ByteBuffer())
      Self.pack(message, length, into: &packed)
      self.parts[last] = .small(packed)
    } else {
      var packed = ByteBuffer()
      packed.reserveCapacity(length + MessageFramer.prefixLength)
      Self.pack(message, length, into: &packed)
      self.parts.append(.small(packed))
    }
  }

  private static func pack(
    _ message: ReceivedMessage,
    _ length: Int,
    into packed: inout ByteBuffer
  ) {
    packed.writeMultipleIntegers(UInt8(message.isCompressed ? 1 : 0), UInt32(clamping: length))
    packed.writeImmutableBuffer(message.payload)
  }

  /// - Parameter isLast: whether no message comes any more, so that no memory is kept for one.
  package mutating func popFirst(isLast: Bool) -> ReceivedMessage? {
    guard !self.isEmpty else { return nil }
    let message: ReceivedMessage
    switch self.parts[self.head] {
    case .message(let whole):
      message = whole
      self.parts[self.head] = .small(ByteBuffer())
    case .small(var packed):
      self.parts[self.head] = .small(ByteBuffer())
      guard let (flag, length) = packed.readMultipleIntegers(as: (UInt8, UInt32).self),
        let payload = packed.readSlice(length: Int(length))
      else { return nil }
      message = ReceivedMessage(payload: payload, isCompressed: flag == 1)
      if packed.readableBytes > 0 {
        self.parts[self.head] = .small(packed)
        return message
      }
    }
    // What was taken is not kept until those behind it are taken as well.
    self.head += 1
    if self.isEmpty {
      self.parts.removeAll(keepingCapacity: !isLast)
      self.head = 0
    }
    return message
  }

  package mutating func removeAll() {
    self.parts = []
    self.head = 0
  }
}
