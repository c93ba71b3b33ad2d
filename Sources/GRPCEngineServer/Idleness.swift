package import NIOCore

/// Whether a server has had nothing to do for a while.
///
/// A value without a clock: it is asked every `period`, beginning with a call, until there is no connection.
package struct Idleness {
  package static let period = TimeAmount.seconds(2)
  /// So many bytes in a period are no work: pings of some thousand connections, metrics.
  private static let trickle: UInt64 = 64 << 10

  /// What a server has done so far, and what it does.
  package struct Activity {
    /// That have begun.
    package var calls: UInt64
    package var openCalls: UInt64
    package var connections: UInt64
    /// Received and sent.
    package var bytes: UInt64

    package init(calls: UInt64, openCalls: UInt64, connections: UInt64, bytes: UInt64) {
      self.calls = calls
      self.openCalls = openCalls
      self.connections = connections
      self.bytes = bytes
    }
  }

  private var last: Activity
  private var isQuiet = false

  package init(_ activity: Activity) { self.last = activity }

  /// - Returns: whether the server has fallen idle in the last period; and whether to look on, since a stream that
  ///   goes on tells nobody, nor does a connection that ends and leaves memory behind.
  package mutating func look(_ activity: Activity) -> (hasBegun: Bool, looksOn: Bool) {
    let wasQuiet = self.isQuiet
    self.isQuiet =
      activity.calls == self.last.calls && activity.openCalls == self.last.openCalls
      && activity.connections == self.last.connections
      && activity.bytes &- self.last.bytes < Self.trickle
    self.last = activity
    return (self.isQuiet && !wasQuiet, !self.isQuiet || activity.connections > 0)
  }
}
