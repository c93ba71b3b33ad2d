/// How far the two directions of one stream are (RFC 9113 section 5.1, as far as a server's answer
/// depends on it), as a value.
///
/// They end independently. Each event either is possible now and changes the state, or returns that
/// it is not and changes nothing.
package struct StreamState: Sendable {
  /// From the peer.
  package enum Inbound: Sendable {
    /// What comes is read.
    case open
    /// More may come, which nobody reads: what came was no message, or there was no memory for it.
    case ignored
    /// The peer has said all that it will.
    case ended
  }

  /// To the peer.
  private enum Outbound {
    /// Nothing has been sent.
    case idle
    /// Headers have been sent; with `isWriting`, messages that have not left for the socket.
    case open(isWriting: Bool)
    /// All of the answer has been given to the HTTP/2 layer.
    case ended
    /// All of the answer has left for the socket.
    case written
    /// This server has sent RST_STREAM.
    case reset(isAnswered: Bool)
    /// The HTTP/2 layer has forgotten the stream.
    case closed
  }

  /// What became of a stream that is closed.
  package enum Outcome: Hashable, Sendable {
    case answered
    case resetByServer
    /// By the peer, for a mistake of its, or by the end of its connection.
    case resetByPeer
  }

  /// How an answer ends.
  package enum End: Sendable {
    /// With a trailers-only answer: one block of headers, which are the first too.
    case trailersOnly
    /// With trailers, after the last messages if there are any.
    case trailers
  }

  /// What follows when something has left for the socket.
  package enum AfterWriting: Sendable {
    case writeMore
    /// The end is on its way already.
    case finishWriting
    /// An answer that is complete before its request asks the peer to stop with RST_STREAM(NO_ERROR)
    /// (RFC 9113 section 8.1), yet only once it is out: a reset drops what waits.
    case reset
    case nothing
  }

  package private(set) var inbound: Inbound
  private var outbound = Outbound.idle

  package init(isInboundEnded: Bool) { self.inbound = isInboundEnded ? .ended : .open }

  // MARK: From the peer

  /// The last frame of the peer has come.
  package mutating func receivedEnd() { self.inbound = .ended }

  /// What comes from now on is not to be read.
  package mutating func ignore() {
    if self.inbound == .open { self.inbound = .ignored }
  }

  // MARK: To the peer

  /// - Returns: whether headers may be sent.
  package mutating func sendHeaders() -> Bool {
    guard case .idle = self.outbound else { return false }
    self.outbound = .open(isWriting: false)
    return true
  }

  /// - Returns: whether messages may be sent.
  package mutating func sendMessages() -> Bool {
    guard case .open = self.outbound else { return false }
    self.outbound = .open(isWriting: true)
    return true
  }

  /// Whether messages have not left for the socket, and others are to wait for them.
  package var isWriting: Bool {
    if case .open(isWriting: true) = self.outbound { true } else { false }
  }

  /// - Returns: how the answer is to end; `nil` when it has.
  package mutating func sendEnd() -> End? {
    switch self.outbound {
    case .idle:
      self.outbound = .ended
      return .trailersOnly
    case .open:
      self.outbound = .ended
      return .trailers
    case .ended, .written, .reset, .closed: return nil
    }
  }

  /// The last frame of the answer has left for the socket.
  package mutating func endLeft() {
    if case .ended = self.outbound { self.outbound = .written }
  }

  /// Messages, or the end, have left for the socket.
  package mutating func written() -> AfterWriting {
    switch self.outbound {
    case .open:
      self.outbound = .open(isWriting: false)
      return .writeMore
    case .ended: return .finishWriting
    case .written:
      guard self.inbound != .ended else { return .nothing }
      self.outbound = .reset(isAnswered: true)
      return .reset
    case .idle, .reset, .closed: return .nothing
    }
  }

  /// - Parameter dropsAnswer: whether an answer that is complete and has not left is dropped as well.
  /// - Returns: whether RST_STREAM is to be sent.
  package mutating func reset(dropsAnswer: Bool) -> Bool {
    switch self.outbound {
    case .reset, .closed: return false
    case .ended, .written:
      guard dropsAnswer || self.inbound != .ended else { return false }
    case .idle, .open: break
    }
    self.outbound = .reset(isAnswered: false)
    return true
  }

  /// The HTTP/2 layer has closed the stream, or the connection is lost.
  ///
  /// - Parameter isClean: whether both sides had said all, as far as the HTTP/2 layer knows.
  package mutating func closed(isClean: Bool) -> Outcome {
    let outcome: Outcome =
      switch self.outbound {
      case .written, .reset(isAnswered: true): .answered
      case _ where isClean: .answered
      case .reset(isAnswered: false): .resetByServer
      case .idle, .open, .ended, .closed: .resetByPeer
      }
    self.outbound = .closed
    self.inbound = .ended
    return outcome
  }
}
