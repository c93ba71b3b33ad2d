package import GRPCEngineTransport
package import GRPCEngineWire
package import NIOCore

/// What there is to say of a call that has ended.
package struct CallSummary: Sendable {
  /// The path that the peer asked for, whether there is such a method or not.
  package var path: String
  package var peer: Peer
  package var code: StatusCode
  /// When its headers came.
  package var accepted: NIODeadline
  /// From its headers to the end of its answer.
  package var duration: TimeAmount
  /// How long it waited for a thread or a loop to run it; `nil` when none ever did.
  package var queueWait: TimeAmount?
  package var traffic: Traffic
  package var queries: Queries

  /// Messages and their bytes, compressed where they were on the wire, without prefixes.
  package struct Traffic: Hashable, Sendable {
    package var messagesReceived = 0
    package var bytesReceived = 0
    package var messagesSent = 0
    package var bytesSent = 0
    package init() {}
  }

  /// Queries to databases that the handler told of.
  package struct Queries: Hashable, Sendable {
    package var count = 0
    package var duration = TimeAmount.zero
    package init() {}
  }
}
