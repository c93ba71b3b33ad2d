internal import GRPCEngineStatistics
internal import GRPCEngineWire
package import NIOCore
package import NIOHPACK
package import NIOHTTP2

/// One HTTP/2 stream of a server connection, from its headers to its last frame.
///
/// There is no channel per stream: the connection keeps a table of these, and everything here
/// runs on the connection's event loop.
///
/// The two directions end independently. Towards the peer: nothing sent → headers sent → ended.
/// From the peer: open → ended, or cut off, when the answer was complete before the question.
package final class ServerStream {
  private enum Outbound { case idle, headersSent, ended }
  /// What headers and trailers of an answer cost that waits for a peer to read, in bytes, roughly.
  private static let trailersCost = 512

  package let id: HTTP2StreamID
  package let connection: ConnectionHandler
  package private(set) var receiver: (any StreamReceiver)?

  private var decoder: MessageDecoder
  private var window: ReceiveWindow
  private var outbound = Outbound.idle
  private var inboundEnded: Bool
  /// What the peer sends is no longer read: it was no message.
  private var isUnreadable = false
  /// Somebody else needed the memory: nothing of it is held here any more.
  private var isAbandoned = false
  /// The size of the call's headers.
  private var headSize = 0
  /// Bytes given to NIOHTTP2 that have not left.
  private var unsent = 0
  private(set) var share: MemoryAccount.Share
  /// The answer has left for the socket, trailers and all.
  private var answerWritten = false
  /// This server has reset the stream.
  private var isReset = false
  /// Whether messages given to `sendMessages` have not left for the socket.
  package private(set) var isWriting = false

  init(id: HTTP2StreamID, connection: ConnectionHandler, endStream: Bool) {
    self.id = id
    self.connection = connection
    self.decoder = MessageDecoder(maximumLength: connection.configuration.maxReceiveMessageLength)
    self.window = ReceiveWindow(target: connection.configuration.streamWindow)
    self.share = MemoryAccount.Share(stream: Int(id))
    self.inboundEnded = endStream
  }

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
    if self.inboundEnded { receiver.receivedEnd() }
  }

  func receivedData(_ data: ByteBuffer, flowControlledLength: Int, endStream: Bool) {
    self.window.received(flowControlledLength)
    guard !self.inboundEnded, !self.isUnreadable, let receiver = self.receiver else { return }
    self.decoder.append(data)
    do {
      while let message = try self.decoder.next() {
        self.window.delivered(message.payload.readableBytes + MessageFramer.prefixLength)
        receiver.received(message)
      }
    } catch {
      self.isUnreadable = true
      self.inboundEnded = endStream
      self.forgetPartialMessage()
      self.charge()
      receiver.receivedInvalidMessage(error.status)
      return
    }
    if endStream {
      self.inboundEnded = true
      if self.decoder.hasPartialMessage {
        receiver.receivedInvalidMessage(
          Status(code: .internalError, details: "Incomplete message at the end of the stream")
        )
      } else {
        receiver.receivedEnd()
      }
    } else {
      self.grantWindow()
    }
    self.charge()
  }

  /// Trailers of the peer; gRPC gives them no meaning beyond the end of the stream.
  func receivedTrailers(_ headers: HPACKHeaders) {
    guard RequestHead.areTrailers(headers) else { return self.reset(.protocolError) }
    self.receivedData(ByteBuffer(), flowControlledLength: 0, endStream: true)
  }

  /// The HTTP/2 layer has closed the stream.
  func closed(reason: HTTP2ErrorCode?) {
    self.outbound = .ended
    self.inboundEnded = true
    self.release()
    guard let receiver = self.receiver else { return }
    self.receiver = nil
    if reason == nil || self.answerWritten {
      receiver.finished()
    } else {
      if !self.isReset { self.connection.statistics[.streamsResetByPeer].add() }
      receiver.failed(.reset(reason ?? .cancel))
    }
  }

  func connectionLost() {
    self.outbound = .ended
    self.inboundEnded = true
    self.release()
    guard let receiver = self.receiver else { return }
    self.receiver = nil
    if self.answerWritten { receiver.finished() } else { receiver.failed(.connectionLost) }
  }

  // MARK: To the peer

  /// The application took messages of `length` bytes, prefixes included: lets the peer send more.
  package func consumed(_ length: Int) {
    self.window.consumed(length)
    self.grantWindow()
    self.charge()
  }

  private func grantWindow() {
    guard !self.inboundEnded, !self.isUnreadable else { return }
    let missing = self.decoder.missingBytes ?? 0
    let growth = self.window.growth(missing: missing)
    let mayGrow = growth == 0 || self.connection.mayGrow(&self.share, by: growth)
    let increment = self.window.grant(
      partial: self.decoder.bufferedBytes,
      missing: mayGrow ? missing : 0
    )
    if increment > 0 { self.connection.sendWindowUpdate(self.id, increment: increment) }
  }

  // MARK: Memory

  /// Tells the connection what is held for this stream.
  private func charge() {
    guard !self.isAbandoned else { return }
    let partial = max(
      self.decoder.bufferedBytes,
      min(self.decoder.reservedBytes, MessageDecoder.smallestReservation)
    )
    let expected = self.inboundEnded || self.isUnreadable ? 0 : self.window.excess
    self.connection.charge(
      &self.share,
      held: self.headSize + self.window.held + partial + expected,
      unsent: self.unsent,
      isComplete: self.inboundEnded
    )
  }

  /// Asks once more for the window that its message needs.
  ///
  /// - Returns: whether others may ask.
  func askAgain() -> Bool {
    self.grantWindow()
    self.charge()
    guard self.share.isWaiting else { return true }
    guard self.inboundEnded || self.isUnreadable || self.windowGrowth == 0 else { return false }
    self.connection.leaveWaiting(&self.share)
    return true
  }

  private var windowGrowth: Int { self.window.growth(missing: self.decoder.missingBytes ?? 0) }

  private func forgetPartialMessage() {
    self.decoder = MessageDecoder(maximumLength: 0)
  }

  /// Nothing is held for the stream any more.
  private func release() {
    self.forgetPartialMessage()
    guard !self.isAbandoned else { return }
    self.isAbandoned = true
    self.connection.charge(&self.share, held: 0, unsent: 0, isComplete: true)
  }

  /// Ends the stream since others need the memory that is held for it.
  func abandon(_ status: Status) {
    self.isUnreadable = true
    let isStuck = self.unsent > 0
    self.release()
    if isStuck || self.receiver == nil {
      // No status gets past what the peer does not read. A reset drops that.
      self.outbound = .ended
      self.isReset = true
      self.connection.statistics[.streamsResetByServer].add()
      self.connection.send(.rstStream(.enhanceYourCalm), on: self.id, promise: nil)
    } else {
      self.receiver?.cancelled(status)
    }
  }

  /// Sends the response headers (initial metadata). Ignored once the stream has ended.
  package func sendHeaders(_ headers: HPACKHeaders) {
    guard self.outbound == .idle else { return }
    self.outbound = .headersSent
    self.connection.send(.headers(.init(headers: headers)), on: self.id, promise: nil)
  }

  /// Sends length-prefixed messages. `receiver.becameWritable()` follows when they have left.
  package func sendMessages(_ messages: ByteBuffer) {
    guard self.outbound == .headersSent else { return }
    self.isWriting = true
    self.unsent = messages.readableBytes
    self.charge()
    let promise = self.eventLoop.makePromise(of: Void.self)
    promise.futureResult.assumeIsolated().whenComplete { result in
      switch result {
      case .success: self.connection.written(self)
      case .failure: self.isWriting = false
      }
    }
    self.connection.send(.data(.init(data: .byteBuffer(messages))), on: self.id, promise: promise)
  }

  /// Ends the answer: the last messages, if any, and the trailers. Headers that were sent before
  /// make these trailers, otherwise they are a trailers-only answer.
  package func sendEnd(messages: ByteBuffer?, trailers: HPACKHeaders) {
    guard self.outbound != .ended else { return }
    if let messages, messages.readableBytes > 0, self.outbound == .headersSent {
      self.unsent += messages.readableBytes
      self.connection.send(.data(.init(data: .byteBuffer(messages))), on: self.id, promise: nil)
    }
    self.outbound = .ended
    self.unsent += Self.trailersCost
    self.charge()
    let frame = HTTP2Frame.FramePayload.headers(.init(headers: trailers, endStream: true))
    if self.inboundEnded {
      self.connection.send(frame, on: self.id, promise: nil)
      return
    }
    // RFC 9113 section 8.1: an answer that is complete before its request asks the peer to stop
    // with RST_STREAM(NO_ERROR), yet only once the answer itself is out: a reset drops what waits.
    let promise = self.eventLoop.makePromise(of: Void.self)
    promise.futureResult.assumeIsolated().whenSuccess {
      self.answerWritten = true
      self.connection.written(self)
    }
    self.connection.send(frame, on: self.id, promise: promise)
  }

  /// What was given to `sendMessages` or `sendEnd` has left for the socket. Called outside of the
  /// pipeline, so that more may be written.
  func written() {
    if self.answerWritten {
      guard !self.inboundEnded, !self.isReset else { return }
      self.isReset = true
      self.connection.send(.rstStream(.noError), on: self.id, promise: nil)
    } else {
      self.isWriting = false
      // The last messages count until the stream is closed, which their end does.
      if self.outbound != .ended { self.unsent = 0 }
      self.charge()
      self.receiver?.becameWritable()
    }
  }

  /// Ends the stream without an answer.
  package func reset(_ code: HTTP2ErrorCode) {
    guard !(self.outbound == .ended && self.inboundEnded) else { return }
    self.outbound = .ended
    self.isReset = true
    self.connection.statistics[.streamsResetByServer].add()
    self.connection.send(.rstStream(code), on: self.id, promise: nil)
  }
}
