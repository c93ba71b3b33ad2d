package import NIOCore

/// Whether a server has had nothing to do for a while, or little after much.
///
/// A value without a clock: it is asked every `period`, beginning with a call, until there is no connection.
package struct Idleness {
  package static let period = TimeAmount.seconds(2)
  /// So many bytes in a period are no work: pings of some thousand connections, metrics.
  private static let trickle: UInt64 = 64 << 10
  /// So many in a period leave memory behind that is worth the moment in which it is given back.
  private static let much: UInt64 = 64 << 20
  /// Which part of the most is little, and for how many periods it has to be.
  private static let partOfMost: UInt64 = 16
  private static let calmPeriods = 3

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
  /// The most bytes of a period since the server has last been idle, or calm.
  private var most: UInt64 = 0
  /// For how many periods there has been little.
  private var calmFor = 0

  package init(_ activity: Activity) { self.last = activity }

  /// - Returns: whether the server has fallen idle, or calm after much, in the last period; and whether to look on,
  ///   since a stream that goes on tells nobody, nor does a connection that ends and leaves memory behind.
  package mutating func look(_ activity: Activity) -> (hasBegun: Bool, looksOn: Bool) {
    let wasQuiet = self.isQuiet
    let bytes = activity.bytes &- self.last.bytes
    self.isQuiet =
      activity.calls == self.last.calls && activity.openCalls == self.last.openCalls
      && activity.connections == self.last.connections
      && bytes < Self.trickle
    self.last = activity
    let hasBegun = self.isQuiet && !wasQuiet || self.hasCalmedDown(bytes)
    if hasBegun { (self.most, self.calmFor) = (0, 0) }
    return (hasBegun, !self.isQuiet || activity.connections > 0)
  }

  private mutating func hasCalmedDown(_ bytes: UInt64) -> Bool {
    self.most = max(self.most, bytes)
    let isCalm = self.most >= Self.much && bytes < self.most / Self.partOfMost
    self.calmFor = isCalm ? self.calmFor + 1 : 0
    return self.calmFor >= Self.calmPeriods
  }
}
