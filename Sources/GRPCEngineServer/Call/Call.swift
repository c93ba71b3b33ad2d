internal import GRPCEngineLocks
package import GRPCEngineStatistics
package import GRPCEngineTransport
package import GRPCEngineWire
package import NIOCore
internal import Synchronization

/// One call, from its headers to its status.
///
/// The event loop feeds it through `StreamReceiver`; a servicer reads and answers it from any
/// thread. What both touch is behind `state`'s mutex, what only the event loop touches is marked
/// so. Waiting is by callback (`whenReadable`, `whenWritable`), so a thread may sleep and a task
/// may be resumed.
///
/// Two ends are told apart: the *answer* ends once, by whoever comes first (the servicer's status,
/// a deadline, a cancellation), and the *servicer* ends when its code has returned. A call counts
/// against `maximum_concurrent_rpcs` until the servicer's end, or until its answer when that is
/// the last thing that the servicer does.
package final class Call: Sendable {
  /// How a call ended.
  package enum Termination: Hashable, Sendable {
    /// The servicer's status was sent.
    case answered
    /// The peer gave up: RST_STREAM, or its connection went away.
    case cancelledByPeer
    /// The call's time ran out.
    case deadlineExceeded
    /// The servicer or the server cancelled it.
    case cancelledByServer
    /// The peer sent something that is no message; what came before it can still be read.
    case invalidRequest
  }

  package enum NextMessage: Sendable {
    case message(ByteBuffer)
    /// The peer has no more.
    case end
    /// Nothing yet; `whenReadable` tells when.
    case pending
    /// The call has ended; nothing more can be read.
    case terminated(Termination)
  }

  package enum SendResult: Hashable, Sendable {
    case accepted
    /// Accepted, but the peer lags: the next message should wait for `whenWritable`.
    case full
    /// The call has ended; the message was dropped.
    case terminated
  }

  /// How long messages of a cancelled call may wait for the peer.
  package static let cancellationPatience = TimeAmount.seconds(2)

  package let head: RequestHead
  package let peer: Peer
  /// The point in time after which the call is answered DEADLINE_EXCEEDED.
  package let deadline: NIODeadline?
  package let accepted: NIODeadline
  package let method: Method
  private let environment: CallEnvironment
  private let outbox: CallOutbox
  private let state: Locked<CallState>
  /// When the call was given to its handler, and when that began to run it, in nanoseconds; 0 for
  /// not yet. Written before anybody can want to know.
  private let dispatched = Atomic<UInt64>(0)
  private let started = Atomic<UInt64>(0)
  /// The system's id of the thread that runs the call.
  private let thread = Atomic<UInt64>(0)
  private let queries = Atomic<Int>(0)
  private let queryNanoseconds = Atomic<Int64>(0)

  /// Touched on `eventLoop` only.
  nonisolated(unsafe) private let stream: ServerStream
  /// What the call waits for before its handler gets it.
  private enum Waiting {
    case nothing
    case firstMessage(any MethodHandler)
    /// Its turn, at its method's gate.
    case turn(any MethodHandler)
  }

  /// Touched on `eventLoop` only.
  nonisolated(unsafe) private var waiting = Waiting.nothing
  /// Touched on `eventLoop` only.
  nonisolated(unsafe) private var deadlineTimer: Scheduled<Void>?
  /// Touched on `eventLoop` only: the call's end was given to the stream, or the stream is gone.
  nonisolated(unsafe) private var hasEnded = false

  init(
    stream: ServerStream,
    head: RequestHead,
    method: Method,
    environment: CallEnvironment,
    outbox: CallOutbox
  ) {
    self.stream = stream
    self.head = head
    self.peer = stream.peer
    self.method = method
    self.environment = environment
    self.outbox = outbox
    let now = stream.eventLoop.now
    self.accepted = now
    var timeout = head.timeout.map { TimeAmount(saturating: $0) }
    if let limits = method.limits { timeout = limits.timeout(asked: timeout) }
    self.deadline = timeout.map { now + $0 }
    let encoding = environment.configuration.compression
    let isPossible =
      environment.configuration.enabledCompression.contains(encoding) && head.accepts(encoding)
    let http2 = environment.configuration.transport.http2
    self.state = Locked(
      CallState(
        encoding: isPossible ? encoding : .identity,
        isAdmitted: method.handler.isLimited,
        streamWindowSize: http2.streamWindowSize,
        sendBufferSize: http2.sendBufferSize
      )
    )
  }

  package var eventLoop: any EventLoop { self.stream.eventLoop }

  // MARK: State

  /// How the call ended; `nil` while it runs.
  package var termination: Termination? { self.state.withLock { $0.termination } }

  /// The status that the peer gets, or CANCELLED when it went; `nil` while the call runs.
  package var code: StatusCode? { self.state.withLock { $0.code } }

  /// Whether the answer is still open.
  package var isActive: Bool { self.state.withLock { $0.termination == nil } }

  /// Calls `callback` once when the call has ended, on the thread that ends it.
  ///
  /// - Returns: false, without calling it, when it has ended already.
  package func onTermination(_ callback: @escaping @Sendable (Termination) -> Void) -> Bool {
    self.state.withLock { $0.onTermination(callback) }
  }

  /// Asks whether the handler is to run the call, where it queues calls: those that have ended meanwhile
  /// are told to `MethodHandler.abandoned`, or found here, and never run. May be called from any thread;
  /// again when the call is handed over.
  package func handlerBegins() -> Bool { self.state.withLock { $0.begin() } }

  /// Whether the call has ended before `handlerBegins`, and not by an answer.
  package var isAbandoned: Bool { self.state.withLock { $0.isAbandoned } }

  private func tellIfAbandoned(_ termination: Termination) {
    guard termination != .answered, self.dispatched.load(ordering: .relaxed) != 0,
      self.isAbandoned
    else { return }
    self.method.handler.abandoned(self)
  }

  /// Says that the handler runs the call from now on. May be called from any thread; again, when
  /// the call is handed over, for the thread that has it then.
  ///
  /// - Parameter thread: the system's id of the thread that it runs on; 0 for a loop that runs many.
  ///
  /// - Returns: the time.
  @discardableResult
  package func handlerStarted(thread: UInt64 = 0) -> NIODeadline {
    let now = NIODeadline.now()
    self.thread.store(thread, ordering: .relaxed)
    guard self.started.load(ordering: .relaxed) == 0 else { return now }
    self.started.store(now.uptimeNanoseconds, ordering: .relaxed)
    let wait = self.queueWait ?? .zero
    self.environment.statistics.slot[.queueWait].record(UInt64(wait.nanoseconds))
    return now
  }

  /// When the call was given to its handler.
  package var dispatchTime: NIODeadline {
    .uptimeNanoseconds(self.dispatched.load(ordering: .relaxed))
  }

  /// Counts a query to a database, for the call's summary. May be called from any thread; ignored
  /// once the call has ended.
  package func countQuery(_ duration: TimeAmount) {
    self.queries.wrappingAdd(1, ordering: .relaxed)
    self.queryNanoseconds.wrappingAdd(duration.nanoseconds, ordering: .relaxed)
  }

  /// How long the handler has been running the call; `nil` when it has not begun.
  package var runningTime: TimeAmount? {
    let started = self.started.load(ordering: .relaxed)
    guard started != 0 else { return nil }
    return NIODeadline.now() - .uptimeNanoseconds(started)
  }

  /// The call as other processes are told of it.
  package var running: RunningCall {
    RunningCall(
      method: self.head.path,
      peer: self.peer.description,
      stage: self.started.load(ordering: .relaxed) == 0 ? .waiting : .running,
      accepted: self.accepted.uptimeNanoseconds,
      deadline: self.deadline?.uptimeNanoseconds ?? 0,
      thread: self.thread.load(ordering: .relaxed)
    )
  }

  /// Called once, on the event loop: so is `begin`, and numbers that only one thread changes stay in
  /// its processor's cache.
  private func countEnd(_ code: StatusCode, _ traffic: CallSummary.Traffic) {
    let now = NIODeadline.now()
    let duration = now - self.accepted
    let method = self.method.statistics
    method.inFlight.subtract()
    method.ended(code.rawValue).add()
    method.durations.record(UInt64(max(0, duration.nanoseconds)))
    method.received.addToSum(UInt64(traffic.bytesReceived))
    method.sent.addToSum(UInt64(traffic.bytesSent))
    let slot = self.environment.statistics.slot
    slot[.calls].subtract()
    slot[.callsEnded].add()
    if let observer = self.environment.observer {
      var queries = CallSummary.Queries()
      queries.count = self.queries.load(ordering: .relaxed)
      queries.duration = .nanoseconds(self.queryNanoseconds.load(ordering: .relaxed))
      observer(
        CallSummary(
          path: self.head.path,
          peer: self.peer,
          code: code,
          accepted: self.accepted,
          duration: duration,
          queueWait: self.queueWait,
          traffic: traffic,
          queries: queries
        )
      )
    }
  }

  /// How long the call waited for its handler to run it; `nil` when that has not been.
  private var queueWait: TimeAmount? {
    let started = self.started.load(ordering: .relaxed)
    guard started != 0 else { return nil }
    let dispatched = self.dispatched.load(ordering: .relaxed)
    return .nanoseconds(started > dispatched ? Int64(started - dispatched) : 0)
  }

  // MARK: Reading, on any thread

  /// Takes the next message, decompressed.
  ///
  /// - Throws: `MessageCodecError` when it cannot be decompressed.
  package func nextMessage() throws(MessageCodecError) -> NextMessage {
    let (next, mustEnqueue) = self.state.withLock { $0.next() }
    if mustEnqueue { self.outbox.enqueue(self) }
    switch next {
    case .end: return .end
    case .pending: return .pending
    case .terminated(let termination): return .terminated(termination)
    case .message(let message):
      guard message.isCompressed else { return .message(message.payload) }
      return .message(
        try Compression.decompress(
          message.payload,
          self.head.encoding,
          maximumLength: self.method.limits?.maximumMessageLength
            ?? self.environment.configuration.transport.maxReceiveMessageLength
        )
      )
    }
  }

  /// Calls `callback` once, when `nextMessage` may have something other than `.pending`; at once, on
  /// this thread, when it has that now. Where several wait, each is called and looks again.
  package func whenReadable(_ callback: @escaping @Sendable () -> Void) {
    if !self.state.withLock({ $0.waitUntilReadable(callback) }) { callback() }
  }

  // MARK: Answering, on any thread

  /// Whether initial metadata, or a message, has been given.
  package var areHeadersDecided: Bool { self.state.withLock { $0.areHeadersDecided } }

  /// How messages are compressed from now on; ignored once headers are out, where the peer cannot
  /// read it, and where it is not enabled.
  package func setEncoding(_ encoding: CompressionAlgorithm) {
    let isPossible =
      self.environment.configuration.enabledCompression.contains(encoding)
      && self.head.accepts(encoding)
    self.state.withLock { $0.setEncoding(isPossible ? encoding : .identity) }
  }

  /// Sends initial metadata; without it, it goes out with the first message.
  ///
  /// - Returns: whether it was still possible.
  package func sendInitialMetadata(_ metadata: Metadata) -> Bool {
    let (isPossible, mustEnqueue) = self.state.withLock { $0.sendInitialMetadata(metadata) }
    if mustEnqueue { self.outbox.enqueue(self) }
    return isPossible
  }

  /// Sends one message.
  ///
  /// - Parameter mayCompress: false sends this message as it is, whatever the call's encoding.
  /// - Throws: `MessageCodecError` when compression fails; nothing is sent then.
  package func send(
    _ message: UnsafeRawBufferPointer,
    mayCompress: Bool
  ) throws(MessageCodecError) -> SendResult {
    let compressed = try self.compressed(message, mayCompress: mayCompress)
    let (result, mustEnqueue) = self.state.withLock { $0.send(message, compressed: compressed) }
    if result != .terminated { self.countSent(message, compressed) }
    if mustEnqueue { self.outbox.enqueue(self) }
    return result
  }

  private func countSent(_ message: UnsafeRawBufferPointer, _ compressed: ByteBuffer?) {
    self.method.statistics.sent.count(UInt64(compressed?.readableBytes ?? message.count))
  }

  /// Calls `callback` once, when a message is welcome again or the call has ended; at once, on
  /// this thread, when that is so now. Where several wait, each is called.
  package func whenWritable(_ callback: @escaping @Sendable () -> Void) {
    if !self.state.withLock({ $0.waitUntilWritable(callback) }) { callback() }
  }

  /// Ends the call with a status. Ignored when it has ended already.
  ///
  /// - Parameter isLast: whether the servicer has nothing left to do, so that the call stops
  ///   counting before its answer can be seen.
  package func finish(_ status: Status, metadata: Metadata? = nil, isLast: Bool = false) {
    self.end(status, metadata: metadata, as: .answered, isLast: isLast)
  }

  /// Sends the only message of an answer and its status, in one step. Ignored when the call has
  /// ended already.
  package func respond(
    _ message: UnsafeRawBufferPointer,
    mayCompress: Bool,
    status: Status,
    metadata: Metadata?
  ) throws(MessageCodecError) {
    let compressed = try self.compressed(message, mayCompress: mayCompress)
    self.end(status, metadata: metadata, as: .answered, isLast: true) { state in
      state.append(message, compressed: compressed)
      self.countSent(message, compressed)
    }
  }

  /// Ends the call in its servicer's stead: with CANCELLED, as `context.cancel()` does, or another
  /// status.
  ///
  /// Messages that were sent before go first, as with grpcio, where sending one is to wait until it has
  /// left. A peer that does not read them within `cancellationPatience` gets a reset in their place.
  package func cancel(_ status: Status = Status(code: .cancelled, details: "CANCELLED")) {
    let end = CallState.End(status: status, metadata: nil, keepsMessages: true)
    self.end(end, as: .cancelledByServer, isLast: false)
  }

  /// Nothing of the servicer runs any more. May be called more than once.
  package func handlerReturned() {
    let (releasesAdmission, leavesGate) = self.state.withLock { $0.handlerReturned() }
    if releasesAdmission { self.environment.admission.release() }
    if leavesGate { self.method.gate?.leave() }
  }

  private func end(
    _ status: Status,
    metadata: Metadata?,
    as termination: Termination,
    isLast: Bool,
    lastMessage: (inout CallState) -> Void = { _ in }
  ) {
    let end = CallState.End(status: status, metadata: metadata)
    self.end(end, as: termination, isLast: isLast, lastMessage: lastMessage)
  }

  private func end(
    _ end: CallState.End,
    as termination: Termination,
    isLast: Bool,
    lastMessage: (inout CallState) -> Void = { _ in }
  ) {
    if isLast { self.handlerReturned() }
    let effects = self.state.withLock {
      $0.end(end, as: termination, lastMessage: lastMessage)
    }
    guard let (wakeUps, mustEnqueue) = effects else { return }
    if mustEnqueue { self.outbox.enqueue(self) }
    wakeUps.perform(termination)
    self.tellIfAbandoned(termination)
  }

  private func compressed(
    _ message: UnsafeRawBufferPointer,
    mayCompress: Bool
  ) throws(MessageCodecError) -> ByteBuffer? {
    guard mayCompress else { return nil }
    let encoding = self.state.withLock { $0.encoding }
    guard encoding != .identity else { return nil }
    let compressed = try Compression.compress(ByteBuffer(bytes: message), encoding)
    // gRPC core sends a message as it is where compression would make it larger.
    return compressed.readableBytes < message.count ? compressed : nil
  }

  // MARK: The event loop's side

  func begin() {
    let handler = self.method.handler
    self.method.statistics.started.add()
    self.method.statistics.inFlight.add()
    self.environment.statistics.slot[.calls].add()
    // Probes, which nothing limits, are no work.
    if handler.isLimited { self.environment.idleWatch.callBegan(on: self.eventLoop) }
    if let deadline = self.deadline {
      guard deadline > self.accepted else {
        let status = Status(code: .deadlineExceeded, details: "Deadline Exceeded")
        return self.end(status, metadata: nil, as: .deadlineExceeded, isLast: true)
      }
      self.deadlineTimer = self.eventLoop.assumeIsolated().scheduleTask(deadline: deadline) {
        self.deadlinePassed()
      }
    }
    if handler.startsOnFirstMessage {
      self.waiting = .firstMessage(handler)
    } else {
      self.start(handler)
    }
  }

  private func start(_ handler: any MethodHandler) {
    guard let gate = self.method.gate, self.state.withLock({ $0.approachGate() }) else {
      return self.dispatch(to: handler)
    }
    switch gate.enter(self) {
    case .run:
      self.state.withLock { $0.enterGate() }
      self.dispatch(to: handler)
    case .wait:
      self.waiting = .turn(handler)
      let isRegistered = self.onTermination { _ in
        if gate.giveUp(self) { self.handlerReturned() }
      }
      if !isRegistered, gate.giveUp(self) { self.handlerReturned() }
    case .refuse:
      self.environment.statistics.slot[.callsRefused].add()
      let status = Status(code: .resourceExhausted, details: "Too many calls of the method!")
      self.end(status, metadata: self.method.limits?.pushback, as: .answered, isLast: true)
    }
  }

  /// The call has waited for its turn, and it is its. May be called from any thread.
  func gateOpened() {
    self.state.withLock { $0.enterGate() }
    self.eventLoop.execute {
      guard case .turn(let handler) = self.waiting, self.isActive else {
        return self.handlerReturned()
      }
      self.waiting = .nothing
      self.dispatch(to: handler)
    }
  }

  private func dispatch(to handler: any MethodHandler) {
    self.dispatched.store(NIODeadline.now().uptimeNanoseconds, ordering: .relaxed)
    handler.start(self)
  }

  /// Gives the call to `handler` in place of the one that has it: for a handler that only finds
  /// out who serves the call. May be called from any thread.
  package func restart(with handler: any MethodHandler) {
    self.eventLoop.execute {
      guard !self.hasEnded else { return self.handlerReturned() }
      if handler.startsOnFirstMessage, self.state.withLock({ $0.awaitsMessage }) {
        self.waiting = .firstMessage(handler)
      } else {
        self.start(handler)
      }
    }
  }

  private var awaitsFirstMessage: Bool {
    if case .firstMessage = self.waiting { true } else { false }
  }

  private func deadlinePassed() {
    self.deadlineTimer = nil
    if !self.hasEnded {
      self.endOnLoop(
        Status(code: .deadlineExceeded, details: "Deadline Exceeded"),
        as: .deadlineExceeded
      )
      self.writePending()
    }
    self.stream.expire()
    self.flush()
  }

  /// Has what the peer does not read dropped after a while, or at the deadline if that comes first.
  private func expireSoon() {
    let soon = self.eventLoop.now + Self.cancellationPatience
    if let deadline = self.deadline, deadline < soon { return }
    self.deadlineTimer?.cancel()
    self.deadlineTimer = self.eventLoop.assumeIsolated().scheduleTask(deadline: soon) {
      self.deadlinePassed()
    }
  }

  private func endOnLoop(_ status: Status, as termination: Termination) {
    let isLast = self.awaitsFirstMessage
    if isLast { self.waiting = .nothing }
    self.end(status, metadata: nil, as: termination, isLast: isLast)
  }

  /// Writes what has been put in the outbox. Called on the event loop.
  func writePending() {
    let isWriting = self.stream.isWriting
    var (pending, traffic) = self.state.withLock { state in
      (state.takePending(isWriting: isWriting), state.traffic)
    }
    if pending.consumed > 0 { self.stream.consumed(pending.consumed) }
    guard !self.hasEnded else { return }
    if let (metadata, encoding) = pending.headers {
      let enabled = self.environment.configuration.enabledCompression
      let headers = ResponseHeaders.initial(metadata, encoding: encoding, enabled: enabled)
      if metadata != nil, ResponseHeaders.isTooLarge(headers) {
        // What comes after them is nothing without them.
        pending.end = CallState.End(status: ResponseHeaders.tooLarge, metadata: nil)
        pending.messages = nil
        pending.areHeadersSent = false
        self.end(ResponseHeaders.tooLarge, metadata: nil, as: .cancelledByServer, isLast: false)
      } else {
        self.stream.sendHeaders(headers)
      }
    }
    if var end = pending.end {
      self.hasEnded = true
      if end.keepsMessages { self.expireSoon() }
      var trailers = ResponseHeaders.trailers(end.status, end.metadata)
      if end.metadata != nil, ResponseHeaders.isTooLarge(trailers) {
        end = CallState.End(status: ResponseHeaders.tooLarge, metadata: nil)
        trailers = ResponseHeaders.trailers(end.status, nil)
      }
      self.countEnd(end.status.code, traffic)
      self.stream.sendEnd(
        messages: pending.messages,
        trailers: pending.areHeadersSent ? trailers : ResponseHeaders.trailersOnly(trailers)
      )
    } else if let messages = pending.messages {
      self.stream.sendMessages(messages)
    }
    self.stream.heldBack = pending.heldBack
  }

  func flush() { self.stream.connection.flush() }
}

// MARK: What the transport tells

extension Call: StreamReceiver {
  package func received(_ message: ReceivedMessage) {
    self.method.statistics.received.count(UInt64(message.payload.readableBytes))
    for waiter in self.state.withLock({ $0.received(message) }) { waiter() }
    guard case .firstMessage(let handler) = self.waiting else { return }
    self.waiting = .nothing
    self.start(handler)
  }

  package func receivedEnd() {
    let (waiters, isEmpty) = self.state.withLock { ($0.receivedEnd(), $0.isInboxEmpty) }
    for waiter in waiters { waiter() }
    if self.awaitsFirstMessage, isEmpty {
      // grpcio's answer to a call that brings no request.
      let details = "\"\(self.head.path)\" requires exactly one request message."
      self.endOnLoop(Status(code: .unimplemented, details: details), as: .invalidRequest)
    }
  }

  package func receivedInvalidMessage(_ status: Status) {
    self.endOnLoop(status, as: .invalidRequest)
  }

  package func cancelled(_ status: Status) {
    self.endOnLoop(status, as: .cancelledByServer)
    self.writePending()
  }

  package func failed(_ failure: StreamFailure) {
    let isCounted = self.hasEnded
    self.hasEnded = true
    self.deadlineTimer?.cancel()
    let (termination, code, wakeUps, traffic) = self.state.withLock { state in
      let (termination, code, wakeUps) = state.streamLost()
      return (termination, code, wakeUps, state.traffic)
    }
    if !isCounted {
      self.countEnd(code, traffic)
      self.tellIfAbandoned(termination)
    }
    wakeUps.perform(termination)
    if self.awaitsFirstMessage {
      self.waiting = .nothing
      self.handlerReturned()
    }
  }

  package func becameWritable() {
    self.state.withLock { $0.written() }
    self.writePending()
    for waiter in self.state.withLock({ $0.takeWriteWaiters() }) { waiter() }
  }

  package func finished() {
    self.hasEnded = true
    self.deadlineTimer?.cancel()
  }
}

extension TimeAmount {
  /// A duration as NIO counts it; one of more than a century is cut to that.
  init(saturating duration: Duration) {
    let (seconds, attoseconds) = duration.components
    let century: Int64 = 100 * 366 * 24 * 3600
    guard seconds < century else {
      self = .seconds(century)
      return
    }
    self = .nanoseconds(seconds * 1_000_000_000 + attoseconds / 1_000_000_000)
  }
}
