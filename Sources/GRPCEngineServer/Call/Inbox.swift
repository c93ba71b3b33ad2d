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
  private static let longestSmall = 512
  /// Bytes of a part, read or not, behind which the next one begins: what has been read is let go.
  private static let partSize = 16 * 1024
  /// Places of messages that were taken, up to which they may stay.
  private static let mostGaps = 32

  /// From `head` on. An array allocates less than a `CircularBuffer` for the one message of most calls.
  private var parts: [Part] = []
  private var head = 0

  package init() {}

  package var isEmpty: Bool { self.head == self.parts.count }

  package mutating func append(_ message: ReceivedMessage) {
    let length = message.payload.readableBytes
    guard length <= Self.longestSmall else {
      self.parts.append(.message(message.released()))
      return
    }
    var packed = self.takeLastPart() ?? ByteBuffer()
    packed.reserveCapacity(minimumWritableBytes: length + MessageFramer.prefixLength)
    MessageFramer.writePrefix(compressed: message.isCompressed, length: length, into: &packed)
    packed.writeImmutableBuffer(message.payload)
    self.parts.append(.small(packed))
  }

  /// Takes out the last part if there is room in it; so it is written to in its place.
  private mutating func takeLastPart() -> ByteBuffer? {
    guard !self.isEmpty, case .small(let packed)? = self.parts.last,
      packed.writerIndex < Self.partSize
    else { return nil }
    self.parts.removeLast()
    return packed
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
    } else if self.head >= Self.mostGaps, self.head >= self.parts.count / 2 {
      // A servicer that always lags by a message never empties it.
      self.parts.removeFirst(self.head)
      self.head = 0
    }
    return message
  }

  /// Places of messages, those that were taken among them.
  package var placesKept: Int { self.parts.count }

  package mutating func removeAll() {
    self.parts = []
    self.head = 0
  }
}
