package import NIOCore

/// Bounds how many frames of a kind a peer sends in a time: frames that nobody needs many of, and that
/// cost it nothing.
package struct FrameRate: Sendable {
  private let most: Int
  private let window: TimeAmount
  private var begun: NIODeadline?
  private var count = 0

  /// - Parameter most: the frames that may come in `window`.
  package init(most: Int, in window: TimeAmount = .seconds(1)) {
    self.most = most
    self.window = window
  }

  /// Counts a frame.
  ///
  /// - Parameter cost: as how many frames it counts.
  /// - Returns: whether it is one too many.
  package mutating func isExceeded(at now: NIODeadline, cost: Int = 1) -> Bool {
    if let begun = self.begun, now - begun < self.window {
      self.count += cost
    } else {
      self.begun = now
      self.count = cost
    }
    return self.count > self.most
  }
}
