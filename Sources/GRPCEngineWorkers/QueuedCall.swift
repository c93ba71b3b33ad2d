public import NIOCore

/// A call that waits for a worker, as far as the order of calls depends on it.
public protocol QueuedCall: Sendable {
  /// Whether its peer can keep it waiting in the middle.
  var isStream: Bool { get }
  /// When its headers came.
  var accepted: NIODeadline { get }
  /// Since when it waits for a worker.
  var queued: NIODeadline { get }
  /// Whether it has ended while it waited: it never runs.
  var isAbandoned: Bool { get }
}
