/// How much a peer may send on one stream (RFC 9113 section 5.2, receiving side).
///
/// The window opens as the application consumes, so a servicer that does not read stops its peer.
/// One exception: a message that has begun may always be completed once nothing else is held,
/// since a servicer cannot consume half a message; its size is bounded by the message limit.
package struct ReceiveWindow {
  /// Bytes that the stream may hold for the application.
  package let target: Int
  /// Bytes that the peer may still send.
  package private(set) var remaining: Int
  /// Bytes of whole messages that the application has not consumed.
  package private(set) var held = 0

  package init(target: Int) {
    self.target = target
    self.remaining = target
  }

  /// A DATA frame came; `length` counts padding too (RFC 9113 section 6.1).
  package mutating func received(_ length: Int) { self.remaining -= length }

  package mutating func delivered(_ length: Int) { self.held += length }

  package mutating func consumed(_ length: Int) { self.held -= length }

  /// Whether the peer has begun to need more window. Who announces a large message and sends little
  /// of it does not.
  package var isHalfUsed: Bool { self.remaining <= self.target / 2 }

  /// How much further than `target` the window would have to open for the rest of a message; 0 when it
  /// need not, or must not yet.
  package func growth(missing: Int) -> Int {
    guard self.held == 0, missing > self.remaining else { return 0 }
    return max(0, min(missing, Int(Int32.max)) - max(self.target, self.remaining))
  }

  /// The increment to grant now; 0 when the window is open enough.
  ///
  /// - Parameters:
  ///   - partial: bytes held of a message that is not complete.
  ///   - missing: bytes still to come of it; 0 when unknown, or when the window may not grow for it.
  package mutating func grant(partial: Int, missing: Int) -> Int {
    var wanted = self.target - self.held - partial
    if self.held == 0 { wanted = max(wanted, missing) }
    // RFC 9113 section 6.9.1: a window never exceeds 2^31 - 1.
    wanted = min(wanted, Int(Int32.max))
    let increment = wanted - self.remaining
    guard increment > 0 else { return 0 }
    let isStarving = self.held == 0 && missing > self.remaining
    guard isStarving || increment >= self.target / 2 else { return 0 }
    self.remaining += increment
    return increment
  }
}
