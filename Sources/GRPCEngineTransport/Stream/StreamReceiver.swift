package import GRPCEngineHTTP2
package import GRPCEngineWire
package import NIOCore

/// Why a stream ended before its answer did.
package enum StreamFailure: Error, Hashable, Sendable {
  /// The peer sent RST_STREAM, or the HTTP/2 layer did for a mistake of the peer's.
  case reset(HTTP2ErrorCode)
  /// The connection went away.
  case connectionLost
}

/// The upper layer's side of one stream: what the transport tells it.
///
/// Every function is called on the stream's event loop and must not block.
package protocol StreamReceiver: AnyObject {
  /// A whole message came. Called in order, never after `receivedEnd`.
  func received(_ message: ReceivedMessage)
  /// The peer has sent its last message (half-close).
  func receivedEnd()
  /// What the peer sent is no message; the call has to be answered with `status`.
  func receivedInvalidMessage(_ status: Status)
  /// The server ends the call; it has to be answered with `status`.
  func cancelled(_ status: Status)
  /// The stream is gone, with its answer unfinished. Called at most once, and last.
  func failed(_ failure: StreamFailure)
  /// All that was written has left for the socket; more is welcome.
  func becameWritable()
  /// The answer is complete and written. Called at most once, and last.
  func finished()
}

/// Decides who serves a stream.
package protocol StreamAcceptor: AnyObject, Sendable {
  /// Called on the stream's event loop once its headers were found to open a gRPC call.
  ///
  /// - Returns: who receives the stream's events, or `nil` when the acceptor has answered already.
  func accept(_ stream: ServerStream, head: RequestHead) -> (any StreamReceiver)?
  /// Called on the event loop of a connection that has ended, whether or not it has brought a stream. By default
  /// nothing is done.
  func connectionEnded(on eventLoop: any EventLoop)
}

extension StreamAcceptor {
  package func connectionEnded(on eventLoop: any EventLoop) {}
}
