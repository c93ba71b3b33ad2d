internal import NIOCore

/// Lets one line a second through, of a kind that may be said thousands of times.
struct LogLimit {
  private var last: NIODeadline?

  /// Whether a line may be written now; it counts as written then.
  mutating func admits(now: NIODeadline) -> Bool {
    if let last, now - last < .seconds(1) { return false }
    self.last = now
    return true
  }
}
