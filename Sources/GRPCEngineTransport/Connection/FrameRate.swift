package import NIOCore

/// Bounds how many frames of a kind a peer sends in a second: frames that nobody needs many of, and that
/// cost it nothing.
package struct FrameRate: Sendable {
  private let most: Int
  private var begun: NIODeadline?
  private var count = 0

  /// - Parameter most: the frames that may come in a second.
  package init(most: Int) { self.most = most }

  /// Counts a frame.
  ///
  /// - Returns: whether it is one too many.
  package mutating func isExceeded(at now: NIODeadline) -> Bool {
    if let begun = self.begun, now - begun < .seconds(1) {
      self.count += 1
    } else {
      self.begun = now
      self.count = 1
    }
    return self.count > self.most
  }
}
