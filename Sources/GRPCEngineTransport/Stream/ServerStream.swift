package import GRPCEngineHTTP2
internal import GRPCEngineStatistics
internal import GRPCEngineWire
package import NIOCore

/// One HTTP/2 stream of a server connection, from its headers to its last frame.
///
/// There is no channel per stream: the connection keeps a table of these, and everything here
/// runs on the connection's event loop.
///
/// How far its two directions are, `StreamState` knows; how much the peer may send, `ReceiveWindow`.
package final class ServerStream {
  package let key: StreamKey
  package let connection: ConnectionHandler
  package private(set) var receiver: (any StreamReceiver)?

  private var decoder: MessageDecoder
  private var window: ReceiveWindow
  private var state: StreamState
  /// Nothing is held for the stream any more, and nothing is charged.
  private var isReleased = false
  /// The size of the call's headers.
  private var headSize = 0
  /// What waits in the HTTP/2 layer, in bytes.
  private var unsent = 0
  /// Bytes of messages that wait elsewhere for those that were given to `sendMessages` to leave.
  package var heldBack = 0 { didSet { if self.heldBack != oldValue { self.charge() } } }
  private(set) var share: MemoryAccount.Share

  init(key: StreamKey, connection: ConnectionHandler, endStream: Bool) {
    self.key = key
    self.connection = connection
    self.decoder = MessageDecoder(maximumLength: connection.configuration.maxReceiveMessageLength)
    self.window = ReceiveWindow(target: connection.memory.streamWindow)
    self.share = MemoryAccount.Share(stream: key.id)
    self.state = StreamState(isInboundEnded: endStream)
  }

  /// The peer's number of the stream.
  package var id: Int { self.key.id }
  /// Whether messages given to `sendMessages` have not left for the socket.
  package var isWriting: Bool { self.state.isWriting }
  package var eventLoop: any EventLoop { self.connection.eventLoop }
  package var peer: Peer { self.connection.peer }

  // MARK: From the peer

  /// Accepts messages of up to `length` bytes; to be called by the acceptor, before any has come.
  package func limitMessages(to length: Int) {
    self.decoder = MessageDecoder(maximumLength: length)
  }

  func attach(_ receiver: any StreamReceiver, headSize: Int) {
    self.receiver = receiver
    self.headSize = headSize
    self.charge()
    if self.state.inbound == .ended { receiver.receivedEnd() }
  }

  func receivedData(_ data: ByteBuffer, flowControlledLength: Int, endStream: Bool) {
    self.window.received(flowControlledLength)
    guard self.state.inbound == .open, let receiver = self.receiver else {
      if endStream { self.state.receivedEnd() }
      return
    }
    self.decoder.append(data, mayFollow: self.window.remaining)
    do {
      while let message = try self.decoder.next() {
        self.window.delivered(message.payload.readableBytes + MessageFramer.prefixLength)
        self.connection.memory.completed(&self.share)
        receiver.received(message)
      }
    } catch {
      if endStream { self.state.receivedEnd() } else { self.state.ignore() }
      self.forgetPartialMessage()
      self.charge()
      receiver.receivedInvalidMessage(error.status)
      return
    }
    if endStream {
      self.state.receivedEnd()
      if self.decoder.hasPartialMessage {
        self.forgetPartialMessage()
        receiver.receivedInvalidMessage(
          Status(code: .internalError, details: "Incomplete message at the end of the stream")
        )
      } else {
        receiver.receivedEnd()
      }
    }
    self.charge()
    self.grantWindow()
  }

  /// Trailers of the peer; gRPC gives them no meaning beyond the end of the stream.
  func receivedTrailers(_ headers: HeaderList) {
    guard RequestHead.areTrailers(headers) else { return self.refuse() }
    self.receivedData(ByteBuffer(), flowControlledLength: 0, endStream: true)
  }

  /// The HTTP/2 layer has closed the stream.
  ///
  /// - Parameter isByPeer: whether the peer has reset it.
  func closed(reason: HTTP2ErrorCode?, isByPeer: Bool) {
    let outcome = self.state.closed(isClean: reason == nil)
    self.release()
    guard let receiver = self.receiver else { return }
    self.receiver = nil
    if isByPeer, outcome == .resetByPeer {
      self.connection.statistics[.streamsResetByPeer].add()
    }
    if outcome == .answered {
      receiver.finished()
    } else {
      receiver.failed(.reset(reason ?? .cancel))
    }
  }

  func connectionLost() {
    let outcome = self.state.closed(isClean: false)
    self.release()
    guard let receiver = self.receiver else { return }
    self.receiver = nil
    if outcome == .answered { receiver.finished() } else { receiver.failed(.connectionLost) }
  }

  // MARK: To the peer

  /// The application took messages of `length` bytes, prefixes included: lets the peer send more.
  package func consumed(_ length: Int) {
    self.window.consumed(length)
    self.charge()
    self.grantWindow()
  }

  /// Lets the peer send more, if it is due.
  func grantWindow() {
    guard self.state.inbound == .open else { return }
    let (partial, missing) = (self.decoder.bufferedBytes, self.decoder.missingBytes ?? 0)
    var increment = self.window.increment(partial: partial, missing: missing)
    self.window.open(by: increment)
    var growth = self.growth
    if growth > 0,
      self.connection.mayGrow(&self.share, by: growth, mayWait: self.window.isNearlyUsed)
    {
      growth = self.growth
      self.window.open(by: growth)
      increment += growth
    }
    guard increment > 0 else { return }
    self.connection.openWindow(of: self, by: increment)
    self.charge()
  }

  /// By how much the window is due to open for the rest of a message.
  private var growth: Int {
    let openness = self.connection.memory.openness(self.share, partial: self.decoder.bufferedBytes)
    return self.window.growth(missing: self.decoder.missingBytes ?? 0, openness: openness)
  }

  // MARK: Memory

  /// Tells the connection what is held for this stream.
  private func charge() {
    guard !self.isReleased else { return }
    var holding = MemoryAccount.Holding()
    holding.headers = self.headSize
    holding.whole = self.window.held
    holding.partial = self.decoder.bufferedBytes
    holding.missing = self.decoder.missingBytes ?? 0
    holding.mayCome = self.state.inbound == .open ? max(0, self.window.remaining) : 0
    // What is reserved costs memory, as it was mostly in use before; half of it is taken for that.
    let reserved = max(0, self.decoder.reservedBytes / 2 - holding.partial)
    holding.besides = self.unsent + self.heldBack + reserved
    holding.isComplete = self.state.inbound == .ended
    self.connection.charge(&self.share, holding)
  }

  /// Asks once more for the window that its message needs.
  ///
  /// - Returns: whether others may ask.
  func askAgain() -> Bool {
    self.grantWindow()
    guard self.share.isWaiting else { return true }
    guard self.state.inbound != .open || self.growth == 0 else { return false }
    self.connection.leaveWaiting(&self.share)
    return true
  }

  func lookAtPace() {
    self.connection.memory.look(&self.share)
    guard self.state.inbound == .open, !self.connection.isPoolFull else { return }
    let probe = self.connection.memory.probe(&self.share)
    guard probe > 0 else { return }
    let increment = self.window.increment(for: probe)
    self.window.open(by: increment)
    self.connection.openWindow(of: self, by: increment)
    self.charge()
  }

  /// All streams begin with another window from now on.
  func windowChanged(to window: Int) {
    self.window.change(to: window)
    self.charge()
  }

  private func forgetPartialMessage() {
    self.decoder = MessageDecoder(maximumLength: 0)
  }

  /// Nothing is held for the stream any more.
  private func release() {
    self.forgetPartialMessage()
    guard !self.isReleased else { return }
    self.isReleased = true
    self.connection.leaveWaiting(&self.share)
    var nothing = MemoryAccount.Holding()
    nothing.isComplete = true
    self.connection.charge(&self.share, nothing)
  }

  /// Ends the stream since others need the memory that is held for it.
  func abandon(_ status: Status) {
    self.state.ignore()
    let isStuck = self.unsent > 0
    self.release()
    if !isStuck, let receiver = self.receiver { return receiver.cancelled(status) }
    // No status gets past what the peer does not read. A reset drops that.
    guard self.state.reset(dropsAnswer: true) else { return }
    self.sendReset(.enhanceYourCalm)
  }

  /// Sends the response headers (initial metadata). Ignored once the stream has ended.
  package func sendHeaders(_ headers: HeaderList) {
    guard self.state.sendHeaders() else { return }
    self.connection.send { $0.sendHeaders(headers, on: self.key) }
    self.chargeWaiting()
  }

  /// Sends length-prefixed messages. `receiver.becameWritable()` follows when they have left.
  package func sendMessages(_ messages: OutgoingData) {
    guard self.state.sendMessages() else { return }
    self.connection.send { $0.sendData(messages, on: self.key) }
    self.chargeWaiting()
  }

  /// Counts what waits in the HTTP/2 layer for the socket or for the peer.
  func chargeWaiting() {
    let waiting = self.connection.waitingBytes(of: self)
    guard waiting != self.unsent else { return }
    self.unsent = waiting
    self.charge()
  }

  /// Ends the answer: the last messages, if any, and the trailers. Headers that were sent before
  /// make these trailers, otherwise they are a trailers-only answer.
  package func sendEnd(messages: OutgoingData?, trailers: HeaderList) {
    guard let end = self.state.sendEnd() else { return }
    let messages = end == .trailers ? messages : nil
    self.connection.send { http2 in
      if let messages { http2.sendData(messages, on: self.key) }
      http2.sendEnd(trailers, on: self.key)
    }
    self.chargeWaiting()
  }

  /// The end of the answer has left before that of its request has come.
  func endLeft() { self.state.endLeft() }

  /// What was given to `sendMessages` or `sendEnd` has left for the socket. Called at the end of a turn of
  /// the event loop, so that a producer that is always ready leaves room for others.
  func written() {
    let next = self.state.written()
    switch next {
    case .writeMore, .finishWriting:
      self.chargeWaiting()
      self.receiver?.becameWritable()
    case .reset: self.connection.reset(self, .noError)
    case .nothing: break
    }
  }

  /// The time for the answer is over. What of it waits for the peer to read is dropped with the stream: no
  /// status gets past that.
  package func expire() {
    guard self.connection.isWaiting(self), self.state.reset(dropsAnswer: true) else { return }
    self.sendReset(.cancel)
  }

  /// Ends the stream without an answer, as what came on it is malformed (RFC 9113 section 8.1.1).
  package func refuse() {
    guard self.state.reset(dropsAnswer: false) else { return }
    self.connection.statistics[.streamsResetByServer].add()
    self.connection.refuse(self)
  }

  private func sendReset(_ code: HTTP2ErrorCode) {
    self.connection.statistics[.streamsResetByServer].add()
    self.connection.reset(self, code)
  }
}
