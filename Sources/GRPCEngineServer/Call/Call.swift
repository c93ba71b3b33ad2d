package import GRPCEngineStatistics
package import GRPCEngineTransport
package import GRPCEngineWire
package import NIOCore
internal import NIOHTTP2
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

  /// How far a call is with its method's gate, where there is one.
  private enum GateStage { case outside, entering, inside, left }

  private struct State {
    // From the peer.
    var inbox: [ReceivedMessage] = []
    var inboxHead = 0
    var isInboundEnded = false
    var consumed = 0
    // To the peer.
    var initialMetadata: Metadata?
    /// Initial metadata was given, or a message: from then on none can be given.
    var areHeadersDecided = false
    var areHeadersSent = false
    var encoding: CompressionAlgorithm
    var outbox: ByteBuffer?
    var inFlight = 0
    var end: (status: Status, metadata: Metadata?)?
    // Both.
    var isEnqueued = false
    /// Whether it counts as one of the calls at a time.
    var isAdmitted = true
    var gate = GateStage.outside
    var termination: Termination?
    var code: StatusCode?
    var readWaiter: (@Sendable () -> Void)?
    var writeWaiter: (@Sendable () -> Void)?
    var terminationCallbacks: [@Sendable (Termination) -> Void] = []
    var traffic = CallSummary.Traffic()
  }

  package let head: RequestHead
  package let peer: Peer
  /// The point in time after which the call is answered DEADLINE_EXCEEDED.
  package let deadline: NIODeadline?
  package let accepted: NIODeadline
  package let method: Method
  private let environment: CallEnvironment
  private let outbox: CallOutbox
  private let state: Mutex<State>
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
  /// Touched on `eventLoop` only; `nil` once the handler has the call, or never will.
  nonisolated(unsafe) private var waitingHandler: (any MethodHandler)?
  /// Touched on `eventLoop` only; who gets the call when its method's gate opens.
  nonisolated(unsafe) private var gatedHandler: (any MethodHandler)?
  /// Touched on `eventLoop` only.
  nonisolated(unsafe) private var deadlineTimer: Scheduled<Void>?
  /// Touched on `eventLoop` only.
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
      head.accepts(encoding) && environment.configuration.enabledCompression.contains(encoding)
    var state = State(encoding: isPossible ? encoding : .identity)
    state.isAdmitted = method.handler.isLimited
    self.state = Mutex(state)
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
    self.state.withLock { state in
      guard state.termination == nil else { return false }
      state.terminationCallbacks.append(callback)
      return true
    }
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
    var shouldEnqueue = false
    let (next, message) = self.state.withLock { state -> (NextMessage, ReceivedMessage?) in
      if let termination = state.termination, termination != .answered,
        termination != .invalidRequest
      {
        return (.terminated(termination), nil)
      }
      guard state.inboxHead < state.inbox.count else {
        if state.isInboundEnded { return (.end, nil) }
        if let termination = state.termination { return (.terminated(termination), nil) }
        shouldEnqueue = self.noteConsumption(&state, isWaiting: true)
        return (.pending, nil)
      }
      let message = state.inbox[state.inboxHead]
      state.inbox[state.inboxHead].payload = ByteBuffer()
      state.inboxHead += 1
      if state.inboxHead == state.inbox.count {
        state.inbox.removeAll(keepingCapacity: state.isInboundEnded == false)
        state.inboxHead = 0
      }
      state.consumed += message.payload.readableBytes + MessageFramer.prefixLength
      shouldEnqueue = self.noteConsumption(&state, isWaiting: false)
      return (.pending, message)
    }
    if shouldEnqueue { self.outbox.enqueue(self) }
    guard let message else { return next }
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

  /// The peer may send more once enough was taken, or when the reader has nothing left. Nothing is
  /// due to it after the call's end, when its event loop may be gone.
  private func noteConsumption(_ state: inout State, isWaiting: Bool) -> Bool {
    guard state.termination == nil, state.consumed > 0, !state.isInboundEnded, !state.isEnqueued
    else { return false }
    let half = self.environment.configuration.transport.http2.streamWindowSize / 2
    guard isWaiting || state.consumed >= half else { return false }
    state.isEnqueued = true
    return true
  }

  /// Calls `callback` once, when `nextMessage` has something other than `.pending`; at once, on
  /// this thread, when it has that now. One reader may wait at a time.
  package func whenReadable(_ callback: @escaping @Sendable () -> Void) {
    let isReadable = self.state.withLock { state in
      if state.inboxHead < state.inbox.count || state.isInboundEnded || state.termination != nil {
        return true
      }
      state.readWaiter = callback
      return false
    }
    if isReadable { callback() }
  }

  // MARK: Answering, on any thread

  /// Whether initial metadata, or a message, has been given.
  package var areHeadersDecided: Bool { self.state.withLock { $0.areHeadersDecided } }

  /// How messages are compressed from now on; ignored once headers are out, where the peer cannot
  /// read it, and where it is not enabled.
  package func setEncoding(_ encoding: CompressionAlgorithm) {
    self.state.withLock { state in
      guard !state.areHeadersSent, !state.areHeadersDecided else { return }
      let isEnabled = self.environment.configuration.enabledCompression.contains(encoding)
      state.encoding = isEnabled && self.head.accepts(encoding) ? encoding : .identity
    }
  }

  /// Sends initial metadata; without it, it goes out with the first message.
  ///
  /// - Returns: whether it was still possible.
  package func sendInitialMetadata(_ metadata: Metadata) -> Bool {
    var shouldEnqueue = false
    let isPossible = self.state.withLock { state in
      guard !state.areHeadersDecided, !state.areHeadersSent else { return false }
      state.initialMetadata = metadata
      state.areHeadersDecided = true
      shouldEnqueue = state.termination == nil && Self.enqueueOnce(&state)
      return true
    }
    if shouldEnqueue { self.outbox.enqueue(self) }
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
    var shouldEnqueue = false
    let result = self.state.withLock { state -> SendResult in
      guard state.termination == nil, state.end == nil else { return .terminated }
      self.append(message, compressed, to: &state)
      shouldEnqueue = Self.enqueueOnce(&state)
      let waiting = state.inFlight + (state.outbox?.readableBytes ?? 0)
      return waiting >= self.environment.configuration.transport.http2.sendBufferSize
        ? .full : .accepted
    }
    if shouldEnqueue { self.outbox.enqueue(self) }
    return result
  }

  /// Calls `callback` once, when a message is welcome again or the call has ended; at once, on
  /// this thread, when that is so now. One writer may wait at a time.
  package func whenWritable(_ callback: @escaping @Sendable () -> Void) {
    let isWritable = self.state.withLock { state in
      if state.termination != nil || self.hasRoom(state) { return true }
      state.writeWaiter = callback
      return false
    }
    if isWritable { callback() }
  }

  private func hasRoom(_ state: borrowing State) -> Bool {
    let waiting = state.inFlight + (state.outbox?.readableBytes ?? 0)
    return waiting <= self.environment.configuration.transport.http2.sendBufferSize / 2
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
      self.append(message, compressed, to: &state)
    }
  }

  /// Ends the call with CANCELLED, as a servicer's `context.cancel()` does.
  package func cancel() {
    let status = Status(code: .cancelled, details: "CANCELLED")
    self.end(status, metadata: nil, as: .cancelledByServer, isLast: false)
  }

  /// Nothing of the servicer runs any more. May be called more than once.
  package func handlerReturned() {
    let (wasAdmitted, wasInside) = self.state.withLock { state in
      defer {
        state.isAdmitted = false
        if state.gate == .inside { state.gate = .left }
      }
      return (state.isAdmitted, state.gate == .inside)
    }
    if wasAdmitted { self.environment.admission.release() }
    if wasInside { self.method.gate?.leave() }
  }

  private func end(
    _ status: Status,
    metadata: Metadata?,
    as termination: Termination,
    isLast: Bool,
    _ change: (inout State) -> Void = { _ in }
  ) {
    if isLast { self.handlerReturned() }
    var shouldEnqueue = false
    var wakeUps = WakeUps()
    self.state.withLock { state in
      guard state.termination == nil else { return }
      change(&state)
      state.termination = termination
      state.code = status.code
      state.end = (status, metadata)
      // A servicer's own status lets the messages before it go first; any other end does not.
      if termination != .answered { state.outbox = nil }
      wakeUps = Self.takeWakeUps(&state)
      shouldEnqueue = Self.enqueueOnce(&state)
    }
    if shouldEnqueue { self.outbox.enqueue(self) }
    wakeUps.perform(termination)
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

  private func append(
    _ message: UnsafeRawBufferPointer,
    _ compressed: ByteBuffer?,
    to state: inout State
  ) {
    let length = compressed?.readableBytes ?? message.count
    state.traffic.messagesSent += 1
    state.traffic.bytesSent += length
    self.method.statistics.sent.count(UInt64(length))
    var outbox =
      state.outbox
      ?? ByteBufferAllocator().buffer(
        capacity: MessageFramer.prefixLength + length
      )
    // Released first, so that the buffer is unique and grows in place.
    state.outbox = nil
    MessageFramer.writePrefix(compressed: compressed != nil, length: length, into: &outbox)
    if let compressed {
      outbox.writeImmutableBuffer(compressed)
    } else {
      outbox.writeBytes(message)
    }
    state.outbox = outbox
    state.areHeadersDecided = true
  }

  private static func enqueueOnce(_ state: inout State) -> Bool {
    guard !state.isEnqueued else { return false }
    state.isEnqueued = true
    return true
  }

  /// Everybody who has to hear that the call has ended; called outside the mutex.
  private struct WakeUps {
    var reader: (@Sendable () -> Void)?
    var writer: (@Sendable () -> Void)?
    var callbacks: [@Sendable (Termination) -> Void] = []

    func perform(_ termination: Termination) {
      self.reader?()
      self.writer?()
      for callback in self.callbacks { callback(termination) }
    }
  }

  private static func takeWakeUps(_ state: inout State) -> WakeUps {
    let wakeUps = WakeUps(
      reader: state.readWaiter,
      writer: state.writeWaiter,
      callbacks: state.terminationCallbacks
    )
    state.readWaiter = nil
    state.writeWaiter = nil
    state.terminationCallbacks = []
    return wakeUps
  }

  // MARK: The event loop's side

  func begin() {
    let handler = self.method.handler
    self.method.statistics.started.add()
    self.method.statistics.inFlight.add()
    self.environment.statistics.slot[.calls].add()
    if let deadline = self.deadline {
      guard deadline > self.accepted else {
        let status = Status(code: .deadlineExceeded, details: "Deadline Exceeded")
        return self.end(status, metadata: nil, as: .deadlineExceeded, isLast: true)
      }
      self.deadlineTimer = self.eventLoop.assumeIsolated().scheduleTask(deadline: deadline) {
        self.deadlinePassed()
      }
    }
    if handler.startsOnFirstMessage { self.waitingHandler = handler } else { self.start(handler) }
  }

  private func start(_ handler: any MethodHandler) {
    guard let gate = self.method.gate, self.state.withLock({ $0.gate == .outside }) else {
      return self.dispatch(to: handler)
    }
    self.state.withLock { $0.gate = .entering }
    switch gate.enter(self) {
    case .run:
      self.state.withLock { $0.gate = .inside }
      self.dispatch(to: handler)
    case .wait:
      self.gatedHandler = handler
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
    self.state.withLock { $0.gate = .inside }
    self.eventLoop.execute {
      guard let handler = self.gatedHandler, self.isActive else { return self.handlerReturned() }
      self.gatedHandler = nil
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
      let mustWait = self.state.withLock { state in
        handler.startsOnFirstMessage && state.inbox.isEmpty && !state.isInboundEnded
      }
      if mustWait { self.waitingHandler = handler } else { self.start(handler) }
    }
  }

  private func startWaitingHandler() {
    guard let handler = self.waitingHandler else { return }
    self.waitingHandler = nil
    self.start(handler)
  }

  private func deadlinePassed() {
    self.deadlineTimer = nil
    self.endOnLoop(
      Status(code: .deadlineExceeded, details: "Deadline Exceeded"),
      as: .deadlineExceeded
    )
  }

  private func endOnLoop(_ status: Status, as termination: Termination) {
    self.end(status, metadata: nil, as: termination, isLast: self.waitingHandler != nil)
    self.waitingHandler = nil
  }

  /// Writes what has been put in the outbox. Called on the event loop.
  func writePending() {
    let isWriting = self.stream.isWriting
    var consumed = 0
    var headers: (Metadata?, CompressionAlgorithm)?
    var messages: ByteBuffer?
    var end: (status: Status, metadata: Metadata?)?
    var areHeadersSent = false
    var traffic = CallSummary.Traffic()
    self.state.withLock { state in
      state.isEnqueued = false
      consumed = state.consumed
      state.consumed = 0
      end = state.end
      state.end = nil
      traffic = state.traffic
      if end != nil || !isWriting {
        messages = state.outbox
        state.outbox = nil
        if end == nil, let messages { state.inFlight = messages.readableBytes }
      }
      if !state.areHeadersSent, messages != nil || state.initialMetadata != nil {
        headers = (state.initialMetadata, state.encoding)
        state.initialMetadata = nil
        state.areHeadersSent = true
      }
      areHeadersSent = state.areHeadersSent
    }
    if consumed > 0 { self.stream.consumed(consumed) }
    guard !self.hasEnded else { return }
    if let (metadata, encoding) = headers {
      let enabled = self.environment.configuration.enabledCompression
      self.stream.sendHeaders(
        ResponseHeaders.initial(metadata, encoding: encoding, enabled: enabled)
      )
    }
    if let end {
      self.hasEnded = true
      self.deadlineTimer?.cancel()
      self.countEnd(end.status.code, traffic)
      let trailers = ResponseHeaders.trailers(end.status, end.metadata)
      self.stream.sendEnd(
        messages: messages,
        trailers: areHeadersSent ? trailers : ResponseHeaders.trailersOnly(trailers)
      )
    } else if let messages {
      self.stream.sendMessages(messages)
    }
  }

  func flush() { self.stream.connection.flush() }
}

// MARK: What the transport tells

extension Call: StreamReceiver {
  package func received(_ message: ReceivedMessage) {
    let length = message.payload.readableBytes
    self.method.statistics.received.count(UInt64(length))
    let waiter = self.state.withLock { state in
      state.inbox.append(message)
      state.traffic.messagesReceived += 1
      state.traffic.bytesReceived += length
      defer { state.readWaiter = nil }
      return state.readWaiter
    }
    waiter?()
    self.startWaitingHandler()
  }

  package func receivedEnd() {
    let (waiter, isEmpty) = self.state.withLock { state in
      state.isInboundEnded = true
      defer { state.readWaiter = nil }
      return (state.readWaiter, state.inbox.isEmpty)
    }
    waiter?()
    if self.waitingHandler != nil, isEmpty {
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
    var wakeUps = WakeUps()
    var traffic = CallSummary.Traffic()
    var code = StatusCode.cancelled
    let termination = self.state.withLock { state -> Termination in
      state.outbox = nil
      state.end = nil
      state.inbox = []
      state.inboxHead = 0
      traffic = state.traffic
      code = state.code ?? .cancelled
      if let termination = state.termination { return termination }
      state.termination = .cancelledByPeer
      state.code = .cancelled
      wakeUps = Self.takeWakeUps(&state)
      return .cancelledByPeer
    }
    if !isCounted { self.countEnd(code, traffic) }
    wakeUps.perform(termination)
    if self.waitingHandler != nil {
      self.waitingHandler = nil
      self.handlerReturned()
    }
  }

  package func becameWritable() {
    self.state.withLock { $0.inFlight = 0 }
    self.writePending()
    let waiter = self.state.withLock { state -> (@Sendable () -> Void)? in
      guard self.hasRoom(state) else { return nil }
      defer { state.writeWaiter = nil }
      return state.writeWaiter
    }
    waiter?()
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
