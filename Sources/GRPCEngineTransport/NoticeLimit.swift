package import NIOCore

/// Lets one notice a second pass, of a kind that may be given thousands of times.
package struct NoticeLimit: Sendable {
  private var last: NIODeadline?

  package init() {}

  package mutating func admit(at now: NIODeadline) -> Bool {
    if let last = self.last, now - last < .seconds(1) { return false }
    self.last = now
    return true
  }
}
