internal import GRPCEngineWire
package import NIOCore

/// What one method may cost.
package struct MethodLimits: Hashable, Sendable {
  /// Calls that run at once; `nil` for no limit.
  package var concurrency: Int?
  /// Calls more than that which wait for their turn.
  package var queue = 0
  /// The time of a call whose peer sets no deadline; `nil` for none.
  package var timeout: TimeAmount?
  /// The most time that a call gets, whatever its peer asks for; `nil` for no limit.
  package var maximumTimeout: TimeAmount?
  /// The largest message in, in bytes after decompression; `nil` for the server's own limit.
  package var maximumMessageLength: Int?
  /// After how long a peer that was refused should try again; `nil` tells it nothing.
  package var retryAfter: TimeAmount?

  package init() {}

  /// The time that a call gets.
  ///
  /// - Parameter asked: what its peer gives it; `nil` when that sets no deadline.
  func timeout(asked: TimeAmount?) -> TimeAmount? {
    guard let timeout = asked ?? self.timeout else { return self.maximumTimeout }
    return min(timeout, self.maximumTimeout ?? timeout)
  }

  /// What goes with a refusal: `grpc-retry-pushback-ms`, which the retry policies of gRPC's clients
  /// follow to the letter (gRFC A6, "Pushback"). So it is spread here, by a fifth either way: peers
  /// that are refused together must not come back together.
  var pushback: Metadata? {
    guard let retryAfter = self.retryAfter else { return nil }
    let milliseconds = Double(retryAfter.nanoseconds) / 1e6 * Double.random(in: 0.8...1.2)
    var metadata = Metadata()
    metadata.append(
      key: "grpc-retry-pushback-ms",
      value: .ascii(String(Int(milliseconds.rounded())))
    )
    return metadata
  }
}
