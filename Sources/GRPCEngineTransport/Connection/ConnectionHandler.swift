internal import GRPCEngineStatistics
package import GRPCEngineWire
package import NIOCore
internal import NIOHPACK
package import NIOHTTP2
internal import NIOSSL
internal import NIOTLS

/// One server connection: a table of streams over `NIOHTTP2Handler`, which sits before it.
///
/// It adds what that handler leaves to its user: stream dispatch, receive windows, the end of the
/// connection after an error, keepalive, age and drain. Everything runs on the event loop.
package final class ConnectionHandler: ChannelInboundHandler {
  package typealias InboundIn = HTTP2Frame
  package typealias OutboundOut = HTTP2Frame

  package let configuration: TransportConfiguration
  package let eventLoop: any EventLoop
  private let acceptor: any StreamAcceptor
  private let registry: ConnectionRegistry
  private let isSecure: Bool
  let statistics: StatisticsSlot

  private var context: ChannelHandlerContext?
  private var streams: [HTTP2StreamID: ServerStream] = [:]
  private var memory: MemoryAccount
  /// What the registry's pool knows that this connection holds.
  let holding = MemoryPool.Holding()
  /// How much that differs from what it does hold.
  private var unreported = 0
  /// Bytes that the peer may still send on the connection.
  private var connectionWindow = TransportConfiguration.HTTP2.protocolWindowSize
  private var isMemoryReviewDue = false
  private var isMemoryReviewScheduled = false
  /// The last stream of the peer's that was heard of.
  private(set) var lastStreamID = HTTP2StreamID.rootStream
  private var lifecycle: ConnectionLifecycle
  private var timer: Scheduled<Void>?
  private var timerDeadline: NIODeadline?
  private var isReading = false
  private var hasUnflushedWrites = false
  private var isFlushScheduled = false
  /// Streams with a write that has left for the socket, which have not been told.
  private var writtenStreams: [ServerStream] = []
  private var settingsRate = FrameRate(most: ConnectionHandler.mostIdleFrames)
  private var emptyDataRate = FrameRate(most: ConnectionHandler.mostIdleFrames)
  private var hasFailed = false
  private var unwrittenGoAways = 0
  private var isRefused = false
  private var isClosing = false
  private var isLingering = false
  package private(set) lazy var peer: Peer = self.makePeer()
  /// Whatever the acceptor keeps for a connection; the transport does not look at it.
  package var attachment: AnyObject?

  /// The most that a connection's answers may keep in their header table, in bytes: what browsers
  /// offer, and sixteen times the default.
  private static let largestHeaderTable = 1 << 16
  /// SETTINGS, and empty frames of DATA, that a peer may send in a second.
  private static let mostIdleFrames = 1000
  /// GOAWAYs of errors that could not be written, past which a connection that drains is closed.
  private static let mostUnwrittenGoAways = 100
  private static let windowUpdated = ObjectIdentifier(NIOHTTP2WindowUpdatedEvent.self)
  private static let streamClosed = ObjectIdentifier(StreamClosedEvent.self)
  private static let streamCreated = ObjectIdentifier(NIOHTTP2StreamCreatedEvent.self)
  private static let drainPing = HTTP2PingData(withInteger: 0x6472_6169_6e00_0001)
  private static let keepalivePing = HTTP2PingData(withInteger: 0x6b65_6570_616c_6976)

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
    self.memory = MemoryAccount(
      limit: configuration.memory.connection,
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
    if let window = self.configuration.lateStreamWindow {
      let setting = HTTP2Setting(parameter: .initialWindowSize, value: window)
      self.send(.settings(.settings([setting])), on: .rootStream, promise: nil)
      self.flush()
    }
    self.scheduleTimer()
  }

  package func channelInactive(context: ChannelHandlerContext) {
    self.timer?.cancel()
    self.registry.remove(self)
    let streams = self.streams
    self.streams = [:]
    self.statistics[.streams].subtract(streams.count)
    for stream in streams.values { stream.connectionLost() }
    self.reportMemory()
    context.fireChannelInactive()
    self.context = nil
  }

  package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    self.isReading = true
    let frame = self.unwrapInboundIn(data)
    switch frame.payload {
    case .headers(let payload):
      if let stream = self.streams[frame.streamID] {
        // NIOHTTP2 lets a second HEADERS pass only when it ends the stream.
        stream.receivedTrailers(payload.headers)
      } else {
        self.openStream(frame.streamID, payload.headers, endStream: payload.endStream)
      }
    case .data(let payload):
      guard case .byteBuffer(let bytes) = payload.data else { return }
      if bytes.readableBytes == 0, !payload.endStream,
        self.emptyDataRate.isExceeded(at: self.eventLoop.now)
      {
        return self.refuse("too_many_empty_frames")
      }
      guard let stream = self.streams[frame.streamID] else { return }
      let padding = payload.paddingBytes.map { $0 + 1 } ?? 0
      stream.receivedData(
        bytes,
        flowControlledLength: bytes.readableBytes + padding,
        endStream: payload.endStream
      )
    case .settings(let settings):
      if self.settingsRate.isExceeded(at: self.eventLoop.now) {
        return self.refuse("too_many_settings")
      }
      self.refuseExcess(settings)
      self.established()
    case .ping(let data, let ack):
      self.receivedPing(data, ack: ack)
    case .rstStream, .goAway, .windowUpdate, .priority, .pushPromise, .alternativeService, .origin:
      break
    }
  }

  package func channelReadComplete(context: ChannelHandlerContext) {
    self.isReading = false
    self.lifecycle.read(now: self.eventLoop.now)
    self.flush()
    context.fireChannelReadComplete()
  }

  package func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    // Several of these come with every call. Comparing types first leaves the dynamic cast, which
    // costs many times as much, to the few that matter.
    let type = ObjectIdentifier(type(of: event))
    if type == Self.windowUpdated {
      if let event = event as? NIOHTTP2WindowUpdatedEvent, event.streamID == .rootStream {
        self.keepConnectionWindowOpen(event.inboundWindowSize)
      }
    } else if type == Self.streamClosed {
      if let event = event as? StreamClosedEvent { self.streamClosed(event) }
    } else if type == Self.streamCreated {
      return
    } else if case .handshakeCompleted(let negotiated) = event as? TLSUserEvent, negotiated != "h2"
    {
      // gRPC over TLS needs ALPN "h2" (RFC 9113 section 3.2).
      context.close(promise: nil)
    }
  }

  package func errorCaught(context: ChannelHandlerContext, error: any Error) {
    // NIOHTTP2 reports errors of one stream here too; those it has answered with RST_STREAM.
    // An error of the connection it answers with GOAWAY, and leaves the closing to us. While the
    // connection drains it can't write that, and says so; calls that crossed the last GOAWAY are such
    // errors too, so some are borne.
    if error is NIOHTTP2Errors.RaisedGoawayLastStreamID {
      self.unwrittenGoAways += 1
      if self.unwrittenGoAways > Self.mostUnwrittenGoAways { self.hasFailed = true }
    }
    if self.hasFailed || !(error is any NIOHTTP2Error) {
      // grpcio's clients hang up without TLS's close_notify, and whoever closes a socket with bytes
      // unread, as a proxy does, resets the connection.
      let hasHungUp = error as? NIOSSLError == .uncleanShutdown || error is IOError
      if !self.isClosing, !hasHungUp { self.statistics[.connectionsFailed].add() }
      self.close(context: context, .short)
    }
  }

  package func channelWritabilityChanged(context: ChannelHandlerContext) {
    context.fireChannelWritabilityChanged()
  }

  /// How much time a peer gets to read what was sent last, and to hang up itself: a socket that is
  /// closed with bytes unread is reset, and the peer may lose what it had not read.
  private enum Farewell {
    /// None: what the socket takes at this moment is sent.
    case none
    /// Half a second.
    case short
    /// All that it takes to send what is under way, and half a second.
    case patient
  }

  private func close(context: ChannelHandlerContext, _ farewell: Farewell) {
    guard context.channel.isActive else { return }
    if !self.isClosing {
      self.isClosing = true
      let promise = self.eventLoop.makePromise(of: Void.self)
      promise.futureResult.assumeIsolated().whenComplete { _ in self.closeAfterLinger() }
      context.close(mode: .output, promise: promise)
    }
    switch farewell {
    case .none: self.cut(context: context)
    case .short: self.closeAfterLinger()
    case .patient: break
    }
  }

  /// Closes the socket itself: TLS would wait for the peer's farewell.
  private func cut(context: ChannelHandlerContext) {
    let socket = try? context.pipeline.syncOperations.context(handlerType: ByteCounter.self)
    (socket ?? context).close(promise: nil)
  }

  private func closeAfterLinger() {
    guard !self.isLingering else { return }
    self.isLingering = true
    self.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(500)) {
      self.context?.close(promise: nil)
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
    for stream in self.streams.values {
      if let receiver = stream.receiver { look(receiver) }
    }
  }

  private func openStream(_ id: HTTP2StreamID, _ headers: HPACKHeaders, endStream: Bool) {
    self.lastStreamID = max(self.lastStreamID, id)
    let hasRoom = self.streams.count < self.configuration.http2.maxConcurrentStreams
    guard self.lifecycle.acceptsStreams, !self.isClosing, hasRoom else {
      // RFC 9113 section 8.7: REFUSED_STREAM says that nothing was done, so a retry is safe.
      self.statistics[.streamsResetByServer].add()
      self.send(.rstStream(.refusedStream), on: id, promise: nil)
      return
    }
    let stream = ServerStream(id: id, connection: self, endStream: endStream)
    self.streams[id] = stream
    self.statistics[.streams].add()
    self.lifecycle.streamOpened()
    do throws(RequestHead.Rejection) {
      let head = try RequestHead(headers, maxSize: self.configuration.http2.maxHeaderListSize)
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
        stream.reset(.protocolError)
      }
    }
  }

  private func streamClosed(_ event: StreamClosedEvent) {
    guard let stream = self.streams.removeValue(forKey: event.streamID) else { return }
    self.statistics[.streams].subtract()
    stream.closed(reason: event.reason)
    self.perform(self.lifecycle.streamClosed(now: self.eventLoop.now))
    if self.configuration.maxConnectionIdle != nil { self.scheduleTimer() }
  }

  /// The connection's window limits no stream for another's sake, since streams have their own, until
  /// there is no room for what it lets in.
  private func keepConnectionWindowOpen(_ remaining: Int?) {
    guard let remaining else { return }
    self.connectionWindow = remaining
    let target = self.memory.window
    guard remaining < target / 2 else { return }
    guard self.memory.mayOpenWindow(isPoolFull: self.isPoolFull) else {
      return self.waitForMemory()
    }
    self.sendWindowUpdate(.rootStream, increment: target - remaining)
    if !self.isReading { self.flushSoon() }
  }

  /// Ends a connection whose peer offers a header table of absurd size.
  ///
  /// NIOHTTP2's encoder takes all of what is offered (RFC 7541 section 4.2 would let it take less)
  /// and keeps in it every field that it writes, so that answers which repeat a peer's own words
  /// could fill the memory, and that every further field is compared with.
  private func refuseExcess(_ settings: HTTP2Frame.FramePayload.Settings) {
    guard case .settings(let values) = settings else { return }
    let isExcessive = values.contains {
      $0.parameter == .headerTableSize && $0.value > Self.largestHeaderTable
    }
    if isExcessive { self.refuse("header_table_size") }
  }

  /// Ends a connection whose peer asks too much.
  private func refuse(_ reason: String) {
    guard !self.isRefused else { return }
    self.isRefused = true
    self.statistics[.connectionsFailed].add()
    self.sendGoAway(self.lastStreamID, .enhanceYourCalm, debugData: reason)
    self.closeSoon()
  }

  // MARK: Frames out

  func send(
    _ payload: HTTP2Frame.FramePayload,
    on id: HTTP2StreamID,
    promise: EventLoopPromise<Void>?
  ) {
    guard let context = self.context else {
      promise?.fail(ChannelError.ioOnClosedChannel)
      return
    }
    self.hasUnflushedWrites = true
    context.write(
      self.wrapOutboundOut(HTTP2Frame(streamID: id, payload: payload)),
      promise: promise
    )
  }

  func sendWindowUpdate(_ id: HTTP2StreamID, increment: Int) {
    guard let context = self.context else { return }
    self.hasUnflushedWrites = true
    let frame = HTTP2Frame(streamID: id, payload: .windowUpdate(windowSizeIncrement: increment))
    context.write(self.wrapOutboundOut(frame), promise: nil)
  }

  /// Flushes what was written, at once outside a read burst; inside one, its end does.
  package func flush() {
    guard self.hasUnflushedWrites, !self.isReading else { return }
    self.hasUnflushedWrites = false
    self.context?.flush()
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
      self.flush()
    }
  }

  /// A write of a stream has left for the socket. The stream is told at the end of this turn: here
  /// the pipeline is in the middle of a flush, and NIOHTTP2 must not be given frames which it might
  /// have to keep while it hands out those that it has kept.
  func written(_ stream: ServerStream) {
    self.writtenStreams.append(stream)
    self.flushSoon()
  }

  private func tellWrittenStreams() {
    guard !self.writtenStreams.isEmpty else { return }
    var streams: [ServerStream] = []
    swap(&streams, &self.writtenStreams)
    for stream in streams { stream.written() }
  }

  // MARK: Memory

  private static let outOfMemory = Status(
    code: .resourceExhausted,
    details: "The client makes the server hold too much memory"
  )
  /// Differences up to this are not worth an access to memory that all connections share.
  private static let unreportedMemory = 4096

  func charge(_ share: inout MemoryAccount.Share, held: Int, unsent: Int, isComplete: Bool) {
    let change = self.memory.charge(&share, held: held, unsent: unsent, isComplete: isComplete)
    self.unreported += change
    if abs(self.unreported) > Self.unreportedMemory { self.reportMemory() }
    if change < 0, self.memory.isTight { self.reviewMemorySoon() }
  }

  /// Whether others hold nothing: a single message may always come.
  private var isOnlyHolder: Bool { self.holding.value >= self.registry.memory.held }
  private var isPoolFull: Bool { self.registry.memory.isFull && !self.isOnlyHolder }

  private func reportMemory() {
    let change = self.unreported
    self.unreported = 0
    if self.registry.memory.add(change, to: self.holding) { self.registry.relieve() }
  }

  func mayGrow(_ share: inout MemoryAccount.Share, by growth: Int) -> Bool {
    let mayGrow = self.memory.mayGrow(&share, by: growth, isPoolFull: self.isPoolFull)
    if !mayGrow { self.waitForMemory() }
    return mayGrow
  }

  func leaveWaiting(_ share: inout MemoryAccount.Share) { self.memory.leave(&share) }

  /// Something waits for memory. Where nothing that is released will tell, it is looked for.
  private func waitForMemory() {
    if self.memory.isStuck || self.isPoolFull { self.reviewMemorySoon() }
  }

  /// At the end of this turn: here streams may be in the middle of something.
  private func reviewMemorySoon() {
    self.isMemoryReviewDue = true
    self.flushSoon()
  }

  private func reviewMemory() {
    self.isMemoryReviewDue = false
    self.abandon(self.memory.streamsInTheWay(self.streams.values.lazy.map(\.share)))
    while let id = self.memory.nextWaiting {
      guard let stream = self.streams[HTTP2StreamID(id)] else {
        self.memory.skipWaiting()
        continue
      }
      guard stream.askAgain() else { break }
    }
    if self.memory.isWindowShut { self.keepConnectionWindowOpen(self.connectionWindow) }
    self.isMemoryReviewDue = false
    // Nobody tells when others have released what this connection waits for.
    if self.memory.isTight, self.isPoolFull { self.reviewMemoryLater() }
  }

  private func reviewMemoryLater() {
    guard !self.isMemoryReviewScheduled else { return }
    self.isMemoryReviewScheduled = true
    self.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(20)) {
      self.isMemoryReviewScheduled = false
      guard self.context != nil else { return }
      self.reviewMemory()
      self.flush()
    }
  }

  /// Gives back half of what the peer makes the server hold.
  func relieve() {
    self.holding.endRelief()
    let shares = self.streams.values.lazy.map(\.share)
    let streams = self.memory.newestHalf(shares, isOnlyHolder: self.isOnlyHolder)
    self.abandon(streams)
    self.flush()
    if !streams.isEmpty, self.registry.memory.isFull { self.registry.relieve() }
  }

  private func abandon(_ streams: [Int]) {
    for id in streams { self.streams[HTTP2StreamID(id)]?.abandon(Self.outOfMemory) }
    if !streams.isEmpty { self.statistics[.callsShed].add(streams.count) }
  }

  // MARK: Life cycle

  private func established() {
    guard self.lifecycle.established(now: self.eventLoop.now) else { return }
    let increment = self.memory.window - self.connectionWindow
    if increment > 0 { self.sendWindowUpdate(.rootStream, increment: increment) }
    self.scheduleTimer()
    if self.registry.isDraining || self.lifecycle.isDrainPending { self.drain() }
  }

  private func receivedPing(_ data: HTTP2PingData, ack: Bool) {
    guard ack else {
      self.perform(self.lifecycle.receivedPing(now: self.eventLoop.now))
      return
    }
    if data == Self.drainPing { self.perform(self.lifecycle.drainPingAnswered()) }
  }

  /// Lets calls in flight end and refuses new ones, then closes.
  package func drain() {
    self.perform(self.lifecycle.drain(now: self.eventLoop.now))
    self.scheduleTimer()
  }

  /// Ends every call with `status` and closes the connection.
  package func cancel(_ status: Status) {
    for stream in self.streams.values { stream.receiver?.cancelled(status) }
    self.closeSoon(.none)
  }

  private func perform(_ action: ConnectionLifecycle.Action) {
    switch action {
    case .none:
      return
    case .beginDrain:
      self.sendWarningGoAway()
      self.send(.ping(Self.drainPing, ack: false), on: .rootStream, promise: nil)
    case .finishDrain(let closing):
      self.sendGoAway(self.lastStreamID, .noError)
      if closing { self.closeSoon() }
    case .sendKeepalivePing:
      self.send(.ping(Self.keepalivePing, ack: false), on: .rootStream, promise: nil)
    case .refusePings: self.refuse("too_many_pings")
    case .close:
      self.closeSoon()
    case .closeWhenWritten:
      self.closeSoon(.patient)
    }
    if !self.isReading { self.flush() }
  }

  private func sendGoAway(_ last: HTTP2StreamID, _ code: HTTP2ErrorCode, debugData: String? = nil) {
    self.send(
      .goAway(lastStreamID: last, errorCode: code, opaqueData: debugData.map(ByteBuffer.init)),
      on: .rootStream,
      promise: nil
    )
  }

  /// The first GOAWAY of a drain, which names no last stream (RFC 9113 section 6.8).
  ///
  /// NIOHTTP2 refuses every new stream from the first GOAWAY on that it is given to write, whatever
  /// stream id that names; calls that cross this one on the wire would be lost. So it goes out
  /// below that handler.
  private func sendWarningGoAway() {
    guard let context = self.context,
      let http2 = try? context.pipeline.syncOperations.context(handlerType: NIOHTTP2Handler.self)
    else { return }
    // What was written before must not come after.
    self.hasUnflushedWrites = false
    context.flush()
    var frame = ByteBuffer()
    // Length 8, type GOAWAY, no flags, stream 0; last stream id 2^31 - 1, NO_ERROR.
    frame.writeBytes([0, 0, 8, 7, 0, 0, 0, 0, 0])
    frame.writeInteger(UInt32(Int32.max))
    frame.writeInteger(UInt32(0))
    http2.write(NIOAny(frame), promise: nil)
    http2.flush()
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

extension ConnectionHandler: NIOHTTP2FrameDelegate {
  /// A frame leaves NIOHTTP2, which may have kept it until the peer's windows opened.
  package func wroteFrame(_ frame: HTTP2Frame) {
    switch frame.payload {
    case .data, .headers, .windowUpdate:
      self.lifecycle.sent()
    case .goAway(_, let code, _):
      // By this NIOHTTP2 says that the connection has failed.
      if code != .noError { self.hasFailed = true }
    case .rstStream, .settings, .ping, .priority, .pushPromise, .alternativeService, .origin:
      break
    }
  }
}

extension RequestHead.Rejection {
  /// The whole answer, as one header block; `nil` for what deserves none.
  var headers: HPACKHeaders? {
    switch self {
    case .malformed:
      return nil
    case .http(let status):
      return [":status": status]
    case .grpc(let status, let advertisesEncodings):
      var headers: HPACKHeaders = [":status": "200", "content-type": "application/grpc"]
      if advertisesEncodings {
        headers.add(name: "grpc-accept-encoding", value: CompressionAlgorithm.acceptEncoding)
      }
      headers.add(name: "grpc-status", value: String(status.code.rawValue))
      if !status.details.isEmpty {
        headers.add(name: "grpc-message", value: PercentEncoding.encode(status.details))
      }
      return headers
    }
  }
}
