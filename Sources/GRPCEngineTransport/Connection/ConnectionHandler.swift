internal import GRPCEngineHTTP2
internal import GRPCEngineStatistics
package import GRPCEngineWire
package import NIOCore
internal import NIOSSL
internal import NIOTLS

/// One server connection: the I/O around `HTTP2Connection`, which is the protocol.
///
/// It adds what that leaves to its user: who serves a stream, when windows open, the end of the
/// connection after an error, keepalive, age and drain. Everything runs on the event loop.
package final class ConnectionHandler: ChannelInboundHandler {
  package typealias InboundIn = ByteBuffer
  package typealias OutboundOut = IOData

  package let configuration: TransportConfiguration
  package let eventLoop: any EventLoop
  private let acceptor: any StreamAcceptor
  let registry: ConnectionRegistry
  private let isSecure: Bool
  let statistics: StatisticsSlot

  private(set) var context: ChannelHandlerContext?
  /// The protocol itself.
  var http2: HTTP2Connection
  /// The open streams, by their places.
  private var streams: ContiguousArray<ServerStream?> = []
  /// How many they are. `http2` may have closed some whose end is still to be followed.
  private var streamCount = 0
  var memory: MemoryAccount
  /// What the registry's pool knows that this connection holds.
  let holding = MemoryPool.Holding()
  /// How much that differs from what it does hold.
  var unreported = 0
  var unreportedFlow = MemoryPool.Flow()
  /// What is given back now is taken from the peer.
  var isTakingMemory = false
  /// What of that is held for no stream.
  var overhead = 0
  /// Bytes that the socket had not taken when that was last looked at.
  var backlog = 0
  /// Bytes that were written since then, and what their buffers take beside.
  var unseenOutput = 0
  var awaitsSocket = false
  var isBacklogDue = false
  var isMemoryReviewDue = false
  var isMemoryReviewScheduled = false
  var isPaceLookScheduled = false
  private var lifecycle: ConnectionLifecycle
  private var timer: Scheduled<Void>?
  private var timerDeadline: NIODeadline?
  private var hasGreeted = false
  private(set) var isReading = false
  private var isFlushing = false
  private var isFlushScheduled = false
  /// Streams with a write that has left for the socket, which have not been told.
  private var writtenStreams: [ServerStream] = []
  private var isDrainPingAnswered = false
  /// How many frames had been sent when the peer pinged last.
  private var sentFrames = 0
  /// The connection has been ended with GOAWAY, for what the peer did.
  private(set) var hasFailed = false
  /// Since when nothing more is served or sent.
  private var closingSince: NIODeadline?
  var isClosing: Bool { self.closingSince != nil }
  private var isLingering = false
  private var isOutputClosed = false
  package private(set) lazy var peer: Peer = self.makePeer()
  /// Whatever the acceptor keeps for a connection; the transport does not look at it.
  package var attachment: AnyObject?

  private static let drainPing: UInt64 = 0x6472_6169_6e00_0001
  private static let keepalivePing: UInt64 = 0x6b65_6570_616c_6976
  /// Places that are kept for streams to come.
  private static let placesKept = 64
  /// How often the socket is filled in one go, before others on the event loop have their turn.
  private static let mostFillings = 8

  package init(
    configuration: TransportConfiguration,
    acceptor: any StreamAcceptor,
    registry: ConnectionRegistry,
    isSecure: Bool,
    eventLoop: any EventLoop
  ) {
    self.configuration = configuration
    self.acceptor = acceptor
    self.registry = registry
    self.isSecure = isSecure
    self.statistics = registry.statistics.slot
    self.eventLoop = eventLoop
    self.http2 = HTTP2Connection(configuration.http2Settings)
    self.memory = MemoryAccount(
      limit: configuration.connectionMemory,
      window: configuration.http2.connectionWindowSize,
      streamWindow: configuration.streamWindow
    )
    self.lifecycle = ConnectionLifecycle(
      configuration: configuration,
      now: eventLoop.now,
      ageSpread: Double.random(in: -1...1)
    )
  }

  // MARK: Channel events

  package func handlerAdded(context: ChannelHandlerContext) {
    self.context = context
    if context.channel.isActive { self.start() }
  }

  package func channelActive(context: ChannelHandlerContext) {
    self.start()
    context.fireChannelActive()
  }

  private func start() {
    guard self.registry.insert(self) else {
      self.context?.close(promise: nil)
      return
    }
    self.flush()  // this server's SETTINGS
    self.scheduleTimer()
  }

  package func channelInactive(context: ChannelHandlerContext) {
    self.timer?.cancel()
    self.registry.remove(self)
    let streams = self.streams
    self.streams = []
    self.streamCount = 0
    for stream in streams.lazy.compactMap({ $0 }) {
      self.statistics[.streams].subtract()
      stream.connectionLost()
    }
    self.forgetOverhead()
    self.acceptor.connectionEnded(on: self.eventLoop)
    context.fireChannelInactive()
    self.context = nil
  }

  package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    // It has said its last: what a peer sends until it has heard of that is for nobody.
    guard !self.isClosing, !self.hasFailed else { return }
    self.isReading = true
    let now = self.eventLoop.now
    self.http2.received(self.unwrapInboundIn(data))
    do {
      while let event = try self.http2.next(at: now) {
        self.handle(event)
        self.followProgress()
        if self.isClosing || self.hasFailed { return }
      }
      self.adaptStreamWindow()
      self.keepConnectionWindowOpen()
    } catch {
      self.fail(error)
    }
  }

  private func handle(_ event: HTTP2Connection.Event) {
    switch event {
    case .request(let key, let block, let isEnd):
      self.openStream(key, block, endStream: isEnd)
    case .data(let key, let bytes, let length, let isEnd):
      self.stream(key)?.receivedData(bytes, flowControlledLength: length, endStream: isEnd)
    case .trailers(let key, let block):
      self.stream(key)?.receivedTrailers(block.list)
    case .reset(let key, let code, let isByPeer):
      if !isByPeer { self.statistics[.streamsResetByServer].add() }
      self.streamClosed(key, code, isByPeer: isByPeer)
    case .refused:
      self.statistics[.streamsResetByServer].add()
    case .settings:
      self.established()
    case .ping:
      if self.http2.sentFrames != self.sentFrames { self.lifecycle.sent() }
      self.sentFrames = self.http2.sentFrames
      self.perform(self.lifecycle.receivedPing(now: self.eventLoop.now))
    case .pingAnswer(let data):
      // Once all has been read that came with it: a client may have opened streams in the same breath.
      if data == Self.drainPing { self.isDrainPingAnswered = true }
    }
  }

  /// What has become of what was sent.
  private func followProgress() {
    while let progress = self.http2.nextProgress() {
      switch progress {
      case .outputLeft(let key):
        guard let stream = self.stream(key) else { continue }
        // Messages may follow headers at once: it is not to be told of those later.
        if stream.isWriting { self.written(stream) } else { stream.chargeWaiting() }
      case .partLeft(let key):
        self.stream(key)?.chargeWaiting()
      case .endLeft(let key):
        guard let stream = self.stream(key) else { continue }
        stream.endLeft()
        self.written(stream)
      case .closed(let key):
        self.streamClosed(key, nil)
      }
    }
  }

  package func channelReadComplete(context: ChannelHandlerContext) {
    self.isReading = false
    if self.lifecycle.read(now: self.eventLoop.now, unfinished: self.http2.unfinished) {
      self.scheduleTimer()
    }
    if self.isDrainPingAnswered, !self.isClosing, !self.hasFailed {
      self.isDrainPingAnswered = false
      self.lifecycle.drainPingAnswered(now: self.eventLoop.now)
      self.scheduleTimer()
    }
    self.flush()
    context.fireChannelReadComplete()
  }

  package func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if case .handshakeCompleted(let negotiated) = event as? TLSUserEvent, negotiated != "h2" {
      // gRPC over TLS needs ALPN "h2" (RFC 9113 section 3.2).
      context.close(promise: nil)
    }
  }

  package func errorCaught(context: ChannelHandlerContext, error: any Error) {
    // grpcio's clients hang up without TLS's close_notify, and whoever closes a socket with bytes
    // unread, as a proxy does, resets the connection.
    let hasHungUp = error as? NIOSSLError == .uncleanShutdown || error is IOError
    if !self.isClosing, !self.hasFailed, !hasHungUp { self.statistics[.connectionsFailed].add() }
    self.close(context: context, .short)
  }

  package func channelWritabilityChanged(context: ChannelHandlerContext) {
    // Not here: it may be called in the middle of a write.
    if context.channel.isWritable { self.flushSoon() }
    context.fireChannelWritabilityChanged()
  }

  /// How much time a peer gets to read what was sent last, and to hang up itself: a socket that is
  /// closed with bytes unread is reset, and the peer may lose what it had not read.
  private enum Farewell {
    /// None: what the socket takes at this moment is sent.
    case none
    /// Half a second.
    case short
    /// All that it takes until the peer's system has what is under way, and half a second.
    case patient
  }

  private func close(context: ChannelHandlerContext, _ farewell: Farewell) {
    guard context.channel.isActive else { return }
    if !self.isClosing {
      self.closingSince = self.eventLoop.now
      self.writeOutput(context: context)
      let promise = self.eventLoop.makePromise(of: Void.self)
      promise.futureResult.assumeIsolated().whenComplete { _ in
        self.isOutputClosed = true
        if farewell != .patient { self.closeAfterLinger() }
      }
      context.close(mode: .output, promise: promise)
    }
    switch farewell {
    case .none: self.cut(context: context)
    case .short: self.closeAfterLinger()
    case .patient: self.closeOnceReceived()
    }
  }

  /// Closes the socket when the peer is owed nothing any more.
  private func closeOnceReceived() {
    self.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(500)) {
      guard let channel = self.context?.channel, !self.isLingering else { return }
      self.reviewBacklog()
      Delivery.ask(channel) { self.closeUnlessOwed($0) }
    }
  }

  private func closeUnlessOwed(_ delivery: Delivery) {
    var delivery = delivery
    delivery.isOutputClosed = self.isOutputClosed
    // The peer may have been silent for long before there was anything to say.
    let closing = self.closingSince.map { self.eventLoop.now - $0 } ?? .zero
    delivery.silence = min(delivery.silence, closing)
    if ConnectionLifecycle.isOwed(delivery) {
      self.closeOnceReceived()
    } else {
      self.closeAfterLinger()
    }
  }

  /// Closes the socket itself: TLS would wait for the peer's farewell.
  private func cut(context: ChannelHandlerContext) {
    (self.socketContext ?? context).close(promise: nil)
  }

  /// Where bytes go to the socket as they are: below TLS.
  var socketContext: ChannelHandlerContext? {
    try? self.context?.pipeline.syncOperations.context(handlerType: ByteCounter.self)
  }

  private func closeAfterLinger() {
    guard !self.isLingering else { return }
    self.isLingering = true
    self.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(500)) {
      if let context = self.context { self.cut(context: context) }
    }
  }

  private func makePeer() -> Peer {
    guard let context = self.context else {
      return Peer(address: nil, localAddress: nil, isSecure: self.isSecure, certificates: [])
    }
    let pipeline = context.pipeline.syncOperations
    var certificates: [NIOSSLCertificate] = []
    var handshake: Handshake?
    if self.isSecure, let handler = try? pipeline.handler(type: NIOSSLServerHandler.self) {
      if let certificate = handler.peerCertificate { certificates.append(certificate) }
      let reader = try? pipeline.handler(type: HandshakeObserver.self).reader
      handshake = Handshake(version: handler.tlsVersion, reader)
    }
    return Peer(
      address: context.remoteAddress,
      localAddress: context.localAddress,
      isSecure: self.isSecure,
      isLocal: (try? pipeline.handler(type: LocalGuard.self)) != nil,
      handshake: handshake,
      certificates: certificates
    )
  }

  // MARK: Streams

  func forEachReceiver(_ look: (any StreamReceiver) -> Void) {
    for stream in self.openStreams {
      if let receiver = stream.receiver { look(receiver) }
    }
  }

  var openStreams: some Sequence<ServerStream> { self.streams.lazy.compactMap { $0 } }

  private func stream(_ key: StreamKey) -> ServerStream? {
    guard key.place < self.streams.count, let stream = self.streams[key.place] else { return nil }
    return stream.key == key ? stream : nil
  }

  /// The stream with a number.
  func stream(numbered id: Int) -> ServerStream? {
    self.http2.key(of: id).flatMap { self.stream($0) }
  }

  private func insert(_ stream: ServerStream) {
    let place = stream.key.place
    while self.streams.count <= place { self.streams.append(nil) }
    self.streams[place] = stream
    self.streamCount += 1
    self.statistics[.streams].add()
  }

  private func openStream(_ key: StreamKey, _ block: HeaderBlock, endStream: Bool) {
    let stream = ServerStream(key: key, connection: self, endStream: endStream)
    guard self.lifecycle.acceptsStreams else {
      // RFC 9113 section 8.7: REFUSED_STREAM says that nothing was done, so a retry is safe.
      self.statistics[.streamsResetByServer].add()
      self.http2.reset(key, .refusedStream)
      return
    }
    self.insert(stream)
    self.lifecycle.streamOpened()
    do throws(RequestHead.Rejection) {
      let head = try self.head(of: block)
      guard self.memory.mayBegin(head.size) else {
        self.statistics[.callsShed].add()
        throw .grpc(Self.outOfMemory)
      }
      if let receiver = self.acceptor.accept(stream, head: head) {
        stream.attach(receiver, headSize: head.size)
      }
    } catch {
      if let headers = error.headers {
        stream.sendEnd(messages: nil, trailers: headers)
      } else {
        stream.refuse()
      }
    }
  }

  /// The call that a header block opens. What a client repeats is found out once.
  private func head(of block: HeaderBlock) throws(RequestHead.Rejection) -> RequestHead {
    if let known = block.attachment as? KnownHead { return known.head }
    let head = try RequestHead(block, maxSize: self.configuration.http2.maxHeaderListSize)
    block.attachment = KnownHead(head)
    return head
  }

  /// - Parameter reason: why a stream was reset; `nil` when both of its sides have ended.
  private func streamClosed(_ key: StreamKey, _ reason: HTTP2ErrorCode?, isByPeer: Bool = false) {
    guard let stream = self.stream(key) else { return }
    self.streams[key.place] = nil
    self.streamCount -= 1
    if self.streamCount == 0, self.streams.count > Self.placesKept { self.streams = [] }
    self.statistics[.streams].subtract()
    stream.closed(reason: reason, isByPeer: isByPeer)
    if self.memory.isStreamWindowLowered { self.adaptStreamWindow() }
    self.perform(self.lifecycle.streamClosed(now: self.eventLoop.now))
    if self.configuration.maxConnectionIdle != nil { self.scheduleTimer() }
  }

  /// The connection's window limits no stream for another's sake, since streams have their own, until
  /// there is no room for what it lets in.
  func keepConnectionWindowOpen() {
    let (remaining, target) = (self.http2.receiveWindow, self.memory.window)
    // A peer that has not heard of smaller windows could fill memory with those of before.
    guard remaining < target / 2, self.hasGreeted, !self.http2.awaitsSmallerWindow else { return }
    let isPoolFull = self.isPoolFull
    guard self.memory.mayOpenWindow(isPoolFull: isPoolFull) else {
      return self.waitForMemory(isPoolFull: isPoolFull)
    }
    self.http2.openWindow(by: target - remaining)
    if !self.isReading { self.flushSoon() }
  }

  /// Ends the connection for what its peer does.
  func fail(_ error: HTTP2ConnectionError) {
    guard !self.hasFailed else { return }
    self.hasFailed = true
    self.statistics[.connectionsFailed].add()
    self.http2.sendGoAway(error.code, error.reason)
    self.forgetOverhead()
    self.closeSoon()
  }

  // MARK: Frames out

  /// Has the protocol send something of a stream.
  func send(_ body: (inout HTTP2Connection) -> Void) {
    guard self.context != nil else { return }
    body(&self.http2)
    self.followProgress()
  }

  func reset(_ stream: ServerStream, _ code: HTTP2ErrorCode) {
    self.http2.reset(stream.key, code)
    self.streamClosed(stream.key, code)
  }

  func isWaiting(_ stream: ServerStream) -> Bool { self.http2.isWaiting(stream.key) }
  func waitingBytes(of stream: ServerStream) -> Int { self.http2.waitingBytes(stream.key) }

  /// Resets a stream for what its peer sends on it.
  func refuse(_ stream: ServerStream) {
    do {
      try self.http2.refuse(stream.key, at: self.eventLoop.now)
      self.streamClosed(stream.key, .protocolError)
    } catch {
      self.fail(error)
    }
  }

  func openWindow(of stream: ServerStream, by increment: Int) {
    self.http2.openWindow(stream.key, by: increment)
  }

  /// Writes what waits to the socket, at once outside a read burst; inside one, its end does.
  package func flush() {
    guard !self.isReading, !self.isFlushing, let context = self.context else { return }
    self.isFlushing = true
    defer {
      self.isFlushing = false
      self.chargeOverhead()
    }
    for _ in 0..<Self.mostFillings {
      self.http2.isWritable = context.channel.isWritable
      self.http2.sendWaiting()
      self.followProgress()
      guard self.http2.isWritable, self.http2.hasOutput, !self.isGathering else { return }
      self.writeOutput(context: context)
      guard self.context != nil, self.http2.hasReadyStreams else { return }
    }
    self.flushSoon()
  }

  /// Writes all there is, whether or not the socket takes it now.
  private func writeOutput(context: ChannelHandlerContext) {
    // However little it is, it takes a buffer.
    self.unseenOutput += self.http2.outputCount + FrameOutput.initialCapacity
    let (pieces, last) = self.http2.takeOutput()
    for piece in pieces { context.write(self.wrapOutboundOut(.byteBuffer(piece)), promise: nil) }
    if let last { context.write(self.wrapOutboundOut(.byteBuffer(last)), promise: nil) }
    context.flush()
    if self.unseenOutput > Self.mostUnseenOutput || self.backlog > 0 { self.measureBacklog() }
  }

  /// Flushes at the end of this turn of the event loop: for writes made inside a callback of the
  /// pipeline, which must not flush again.
  package func flushSoon() {
    guard !self.isFlushScheduled else { return }
    self.isFlushScheduled = true
    self.eventLoop.assumeIsolated().execute {
      self.isFlushScheduled = false
      self.tellWrittenStreams()
      if self.isMemoryReviewDue { self.reviewMemory() }
      if self.isBacklogDue { self.reviewBacklog() }
      self.flush()
    }
  }

  /// A write of a stream has left. The stream is told at the end of this turn, so that one whose producer
  /// is always ready leaves room for others.
  private func written(_ stream: ServerStream) {
    self.writtenStreams.append(stream)
    self.flushSoon()
  }

  private func tellWrittenStreams() {
    guard !self.writtenStreams.isEmpty else { return }
    var streams: [ServerStream] = []
    swap(&streams, &self.writtenStreams)
    for stream in streams { stream.written() }
  }

  // MARK: Life cycle

  private func established() {
    guard self.lifecycle.established(now: self.eventLoop.now) else { return }
    self.hasGreeted = true
    let increment = self.memory.window - self.http2.receiveWindow
    if increment > 0 { self.http2.openWindow(by: increment) }
    self.scheduleTimer()
    if self.registry.isDraining || self.lifecycle.isDrainPending { self.drain() }
  }

  /// Lets calls in flight end and refuses new ones, then closes.
  package func drain() {
    self.perform(self.lifecycle.drain(now: self.eventLoop.now))
    self.scheduleTimer()
  }

  /// Ends every call with `status` and cuts the connection.
  package func cancel(_ status: Status) { self.cancel(status, .none) }

  private func cancel(_ status: Status, _ farewell: Farewell) {
    for stream in Array(self.openStreams) { stream.receiver?.cancelled(status) }
    self.closeSoon(farewell)
  }

  private func perform(_ action: ConnectionLifecycle.Action) {
    switch action {
    case .none:
      return
    case .beginDrain:
      self.http2.sendGoAwayWarning()
      self.http2.sendPing(Self.drainPing)
    case .finishDrain(let closing):
      self.http2.sendGoAway(.noError)
      if closing { self.closeSoon(.patient) }
    case .sendKeepalivePing:
      self.askReceived { sent, received in
        self.lifecycle.keepalivePingWaits(behind: sent, received: received)
      }
      self.http2.sendPing(Self.keepalivePing)
    case .askDelivery:
      self.askReceived { _, received in
        let now = self.eventLoop.now
        self.perform(self.lifecycle.keepaliveTimedOut(received: received, now: now))
      }
    case .refusePings: self.fail(HTTP2ConnectionError(.enhanceYourCalm, "too_many_pings"))
    case .refuseUnfinished:
      self.fail(HTTP2ConnectionError(.enhanceYourCalm, "A frame or header block is not finished"))
    case .close:
      self.closeSoon()
    case .cutCalls:
      self.cancel(Status(code: .unavailable, details: "max connection age"), .short)
    case .closeWhenWritten:
      self.closeSoon(.patient)
    }
    if !self.isReading { self.flush() }
  }

  /// Asks how many bytes have been sent, and how many of them the peer's system has received.
  private func askReceived(_ body: @escaping (_ sent: Int, _ received: Int?) -> Void) {
    guard let context = self.context else { return }
    let counter = try? context.pipeline.syncOperations.handler(type: ByteCounter.self)
    let sent = (counter?.sent ?? 0) + self.http2.outputCount
    Delivery.ask(context.channel) { body(sent, $0.received) }
  }

  /// Closes once what this turn of the event loop writes has been flushed.
  private func closeSoon(_ farewell: Farewell = .short) {
    self.eventLoop.assumeIsolated().execute {
      self.isReading = false
      self.flush()
      if let context = self.context {
        self.close(context: context, farewell)
      }
    }
  }

  private func scheduleTimer() {
    // A drain may reach a connection that has gone meanwhile; a timer would keep it for hours.
    guard self.context != nil, let deadline = self.lifecycle.nextDeadline else { return }
    if let current = self.timerDeadline, current <= deadline { return }
    self.timer?.cancel()
    self.timerDeadline = deadline
    self.timer = self.eventLoop.assumeIsolated().scheduleTask(deadline: deadline) {
      self.timerDeadline = nil
      self.perform(self.lifecycle.timerFired(now: self.eventLoop.now))
      self.scheduleTimer()
    }
  }
}

/// A head that is kept with the header block that it was read from.
private final class KnownHead {
  let head: RequestHead

  init(_ head: RequestHead) { self.head = head }
}

extension RequestHead.Rejection {
  /// The whole answer, as one header block; `nil` for what deserves none.
  var headers: HeaderList? {
    switch self {
    case .malformed:
      return nil
    case .http(let status):
      return [":status": status]
    case .grpc(let status, let advertisesEncodings):
      var headers: HeaderList = [":status": "200", "content-type": "application/grpc"]
      if advertisesEncodings {
        headers.append("grpc-accept-encoding", CompressionAlgorithm.acceptEncoding)
      }
      headers.append("grpc-status", String(status.code.rawValue))
      if !status.details.isEmpty {
        headers.append("grpc-message", PercentEncoding.encode(status.details))
      }
      return headers
    }
  }
}
