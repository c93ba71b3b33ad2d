/// How much a peer may send on one stream (RFC 9113 section 5.2, receiving side).
///
/// The window opens as the application consumes, so a servicer that does not read stops its peer.
/// One exception: it opens further for a message that has begun once nothing else is held, since a
/// servicer cannot consume half a message; how far, the connection's `MemoryAccount` says.
package struct ReceiveWindow {
  /// Bytes that the stream may hold for the application.
  package private(set) var target: Int
  /// Bytes that the peer may still send; below 0 where it had sent more as the target fell.
  package private(set) var remaining: Int
  /// Bytes of whole messages that the application has not consumed.
  package private(set) var held = 0

  package init(target: Int) {
    self.target = target
    self.remaining = target
  }

  /// All streams begin with another window from now on, and this one has so much more or less
  /// (RFC 9113 section 6.9.2).
  package mutating func change(to target: Int) {
    self.remaining += target - self.target
    self.target = target
  }

  /// A DATA frame came; `length` counts padding too (RFC 9113 section 6.1).
  package mutating func received(_ length: Int) { self.remaining -= length }

  package mutating func delivered(_ length: Int) { self.held += length }

  package mutating func consumed(_ length: Int) { self.held -= length }

  /// By how much the window is due to open as the application took messages; 0 until that is half of
  /// what the stream may hold, or a message needs it.
  ///
  /// - Parameters:
  ///   - partial: bytes held of a message that is not complete.
  ///   - missing: bytes still to come of it, as far as is known.
  package func increment(partial: Int, missing: Int) -> Int {
    let increment = self.target - self.held - partial - self.remaining
    let isDue = increment >= self.target / 2 || self.held == 0 && missing > self.remaining
    return isDue ? max(0, increment) : 0
  }

  /// Whether the peer may send so little that it may have stopped.
  package var isNearlyUsed: Bool { self.remaining <= self.target / 4 }

  /// By how much the window is due to open for the rest of a message; 0 while half of it is open, or
  /// while messages before that one are held.
  ///
  /// - Parameters:
  ///   - missing: bytes still to come of the message.
  ///   - openness: how far the window may open for it, if that is further than it always may.
  package func growth(missing: Int, openness: Int) -> Int {
    // RFC 9113 section 6.9.1: a window never exceeds 2^31 - 1.
    let openness = min(max(self.target, openness), Int(Int32.max))
    guard self.held == 0, missing > self.remaining, self.remaining <= openness / 2 else { return 0 }
    return min(min(missing, openness) - self.remaining, Int(Int32.max))
  }

  /// By how much the window is to open for `length` bytes to come.
  package func increment(for length: Int) -> Int { length - min(0, self.remaining) }

  package mutating func open(by increment: Int) { self.remaining += increment }
}
