internal import GRPCEngineHTTP2
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore

/// What both sides know of a call, its event loop and its servicer's threads, as a value: it is told
/// what happens and returns what is to be done. `Call` guards it with a mutex.
struct CallState {
  /// Somebody who waits for the call; called once, without the mutex.
  typealias Waiter = @Sendable () -> Void

  /// The response headers' way. Those that are decided can't be changed any more.
  private enum Headers {
    case undecided
    case decided(Metadata?)
    case sent
  }

  /// What a call is answered with in the end.
  struct End {
    let status: Status
    let metadata: Metadata?
    /// Whether messages go first though the call is given up, see `Call.cancel`.
    var keepsMessages = false
  }

  private enum Answer {
    case open
    /// Decided. `unsent` is what has not been given to the stream yet.
    case ended(Call.Termination, StatusCode, unsent: End?)
  }

  /// How far a call is with its method's gate, where there is one.
  private enum Gate { case outside, entering, inside, left }

  private var inbox = Inbox()
  private var isInboundEnded = false
  /// Bytes that the servicer has taken and the stream has not been told of.
  private var consumed = 0
  private var headers = Headers.undecided
  private(set) var encoding: CompressionAlgorithm
  private var outbox: OutgoingData?
  /// Bytes that the stream has and its socket has not.
  private var inFlight = 0
  private var answer = Answer.open
  /// Whether the call is in its event loop's outbox.
  private var isEnqueued = false
  /// Whether its handler runs it, or has.
  private var hasBegun = false
  /// Whether it counts as one of the calls at a time.
  private var isAdmitted: Bool
  private var gate = Gate.outside
  private var readWaiters: [Waiter] = []
  private var writeWaiters: [Waiter] = []
  private var terminationCallbacks: [@Sendable (Call.Termination) -> Void] = []
  private(set) var traffic = CallSummary.Traffic()

  /// Bytes taken at which the stream is told, though the servicer has more to take.
  private let consumptionStep: Int
  /// Bytes that wait for the peer at which the next message should wait too.
  private let sendBufferSize: Int

  init(
    encoding: CompressionAlgorithm,
    isAdmitted: Bool,
    streamWindowSize: Int,
    sendBufferSize: Int
  ) {
    self.encoding = encoding
    self.isAdmitted = isAdmitted
    self.consumptionStep = streamWindowSize / 2
    self.sendBufferSize = sendBufferSize
  }

  // MARK: The answer

  /// How the call ended; `nil` while it runs.
  var termination: Call.Termination? {
    if case .ended(let termination, _, _) = self.answer { termination } else { nil }
  }

  var code: StatusCode? { if case .ended(_, let code, _) = self.answer { code } else { nil } }

  /// Its handler is to run it from now on.
  ///
  /// - Returns: false when it has ended already.
  mutating func begin() -> Bool {
    guard self.termination == nil else { return false }
    self.hasBegun = true
    return true
  }

  /// Whether it has ended, and not by an answer, before its handler began: nobody will run it.
  var isAbandoned: Bool {
    guard !self.hasBegun, let termination else { return false }
    return termination != .answered
  }

  /// - Returns: false when the call has ended already.
  mutating func onTermination(_ callback: @escaping @Sendable (Call.Termination) -> Void) -> Bool {
    guard self.termination == nil else { return false }
    self.terminationCallbacks.append(callback)
    return true
  }

  /// Everybody who has to hear that the call has ended; called without the mutex.
  struct WakeUps {
    fileprivate(set) var waiters: [Waiter] = []
    fileprivate(set) var callbacks: [@Sendable (Call.Termination) -> Void] = []

    func perform(_ termination: Call.Termination) {
      for waiter in self.waiters { waiter() }
      for callback in self.callbacks { callback(termination) }
    }
  }

  private mutating func takeWakeUps() -> WakeUps {
    defer {
      self.readWaiters = []
      self.writeWaiters = []
      self.terminationCallbacks = []
    }
    return WakeUps(
      waiters: self.readWaiters + self.writeWaiters,
      callbacks: self.terminationCallbacks
    )
  }

  /// Ends the answer; `nil` when it has ended already.
  ///
  /// - Parameter lastMessage: puts the answer's last message in.
  mutating func end(
    _ end: End,
    as termination: Call.Termination,
    lastMessage: (inout Self) -> Void = { _ in }
  ) -> (wakeUps: WakeUps, mustEnqueue: Bool)? {
    guard self.termination == nil else { return nil }
    lastMessage(&self)
    self.answer = .ended(termination, end.status.code, unsent: end)
    // A servicer's own end lets the messages before it go first; any other does not.
    if termination != .answered, !end.keepsMessages { self.outbox = nil }
    // Nobody reads on, though the call may stay in a queue for long.
    if termination != .answered, termination != .invalidRequest { self.dropInbox() }
    return (self.takeWakeUps(), self.enqueueOnce())
  }

  /// The stream is gone: nothing can be read or sent any more.
  ///
  /// - Returns: how the call ended, now or before.
  mutating func streamLost() -> (Call.Termination, StatusCode, WakeUps) {
    self.outbox = nil
    self.dropInbox()
    if case .ended(let termination, let code, _) = self.answer {
      self.answer = .ended(termination, code, unsent: nil)
      return (termination, code, WakeUps())
    }
    self.answer = .ended(.cancelledByPeer, .cancelled, unsent: nil)
    return (.cancelledByPeer, .cancelled, self.takeWakeUps())
  }

  // MARK: From the peer

  /// - Returns: who waited for it.
  mutating func received(_ message: ReceivedMessage) -> [Waiter] {
    self.inbox.append(message)
    self.traffic.messagesReceived += 1
    self.traffic.bytesReceived += message.payload.readableBytes
    return self.takeReadWaiters()
  }

  mutating func receivedEnd() -> [Waiter] {
    self.isInboundEnded = true
    return self.takeReadWaiters()
  }

  private mutating func takeReadWaiters() -> [Waiter] {
    defer { self.readWaiters = [] }
    return self.readWaiters
  }

  /// Whether no message waits for the servicer.
  var isInboxEmpty: Bool { self.inbox.isEmpty }
  /// Whether a message, or that there is none, is still to come.
  var awaitsMessage: Bool { self.isInboxEmpty && !self.isInboundEnded }

  private mutating func dropInbox() { self.inbox.removeAll() }

  enum Next {
    case message(ReceivedMessage)
    case end
    case pending
    case terminated(Call.Termination)
  }

  /// Takes the next message.
  mutating func next() -> (Next, mustEnqueue: Bool) {
    switch self.termination {
    case nil, .answered, .invalidRequest: break
    case let termination?: return (.terminated(termination), false)
    }
    guard let message = self.inbox.popFirst(isLast: self.isInboundEnded) else {
      if self.isInboundEnded { return (.end, false) }
      if let termination { return (.terminated(termination), false) }
      return (.pending, self.noteConsumption(isWaiting: true))
    }
    self.consumed += message.payload.readableBytes + MessageFramer.prefixLength
    return (.message(message), self.noteConsumption(isWaiting: false))
  }

  /// The peer may send more once enough was taken, or when the reader has nothing left. Nothing is
  /// due to it after the call's end, when its event loop may be gone.
  private mutating func noteConsumption(isWaiting: Bool) -> Bool {
    guard self.termination == nil, self.consumed > 0 else { return false }
    // A peer that has sent its last needs no window; others may need the memory.
    guard self.consumed >= self.consumptionStep || (isWaiting && !self.isInboundEnded) else {
      return false
    }
    return self.enqueueOnce()
  }

  /// - Returns: false, without keeping the waiter, when `next` has something other than `.pending`.
  mutating func waitUntilReadable(_ waiter: @escaping Waiter) -> Bool {
    guard self.awaitsMessage, self.termination == nil else { return false }
    self.readWaiters.append(waiter)
    return true
  }

  // MARK: To the peer

  /// Whether initial metadata, or a message, has been given.
  var areHeadersDecided: Bool { if case .undecided = self.headers { false } else { true } }

  /// Ignored once the headers are decided.
  mutating func setEncoding(_ encoding: CompressionAlgorithm) {
    if !self.areHeadersDecided { self.encoding = encoding }
  }

  /// - Returns: whether it was possible, and whether the call is to be put into its outbox.
  mutating func sendInitialMetadata(_ metadata: Metadata) -> (isPossible: Bool, mustEnqueue: Bool) {
    guard case .undecided = self.headers else { return (false, false) }
    self.headers = .decided(metadata)
    return (true, self.termination == nil && self.enqueueOnce())
  }

  /// Adds a message, compressed or as it is, behind those that wait.
  mutating func append(_ message: UnsafeRawBufferPointer, compressed: ByteBuffer?) {
    let length = compressed?.readableBytes ?? message.count
    self.traffic.messagesSent += 1
    self.traffic.bytesSent += length
    var outbox = self.outbox ?? OutgoingData(capacity: MessageFramer.prefixLength + length)
    // Released first, so that its buffers are unique and grow in place.
    self.outbox = nil
    MessageFramer.withPrefix(compressed: compressed != nil, length: length) { outbox.write($0) }
    if let compressed {
      compressed.withUnsafeReadableBytes { outbox.write($0) }
    } else {
      outbox.write(message)
    }
    self.outbox = outbox
    if case .undecided = self.headers { self.headers = .decided(nil) }
  }

  mutating func send(
    _ message: UnsafeRawBufferPointer,
    compressed: ByteBuffer?
  ) -> (Call.SendResult, mustEnqueue: Bool) {
    guard self.termination == nil else { return (.terminated, false) }
    self.append(message, compressed: compressed)
    return (self.unsent >= self.sendBufferSize ? .full : .accepted, self.enqueueOnce())
  }

  private var unsent: Int { self.inFlight + (self.outbox?.readableBytes ?? 0) }
  private var hasRoom: Bool { self.unsent <= self.sendBufferSize / 2 }

  /// - Returns: false, without keeping the waiter, when a message is welcome, or the call has ended.
  mutating func waitUntilWritable(_ waiter: @escaping Waiter) -> Bool {
    guard self.termination == nil, !self.hasRoom else { return false }
    self.writeWaiters.append(waiter)
    return true
  }

  private mutating func enqueueOnce() -> Bool {
    guard !self.isEnqueued else { return false }
    self.isEnqueued = true
    return true
  }

  /// What is to be given to the stream, in this order.
  struct Pending {
    var consumed = 0
    /// Bytes of messages that stay here, behind those that the stream has.
    var heldBack = 0
    var headers: (metadata: Metadata?, encoding: CompressionAlgorithm)?
    var messages: OutgoingData?
    var end: End?
    /// Whether the headers are out, with those here.
    var areHeadersSent = false
  }

  /// Takes what is to go out; the call is no longer in its outbox.
  ///
  /// - Parameter isWriting: whether the stream has messages that have not left; those here then wait,
  ///   unless the end goes with them.
  mutating func takePending(isWriting: Bool) -> Pending {
    self.isEnqueued = false
    var pending = Pending(consumed: self.consumed)
    self.consumed = 0
    if case .ended(let termination, let code, let unsent?) = self.answer {
      pending.end = unsent
      self.answer = .ended(termination, code, unsent: nil)
    }
    if pending.end != nil || !isWriting {
      pending.messages = self.outbox
      self.outbox = nil
      if pending.end == nil, let messages = pending.messages {
        self.inFlight = messages.readableBytes
      }
    }
    pending.heldBack = self.outbox?.readableBytes ?? 0
    switch self.headers {
    case .decided(let metadata) where metadata != nil || pending.messages != nil:
      pending.headers = (metadata, self.encoding)
      self.headers = .sent
    case .undecided, .decided, .sent: break
    }
    if case .sent = self.headers { pending.areHeadersSent = true }
    return pending
  }

  /// What the stream had to write has left.
  mutating func written() { self.inFlight = 0 }

  /// Who waited for room, when there is some.
  mutating func takeWriteWaiters() -> [Waiter] {
    guard self.hasRoom else { return [] }
    defer { self.writeWaiters = [] }
    return self.writeWaiters
  }

  // MARK: What the call counts against

  /// Nothing of the servicer runs any more.
  ///
  /// - Returns: whether the call stops counting as one of those at a time, and of its method's.
  mutating func handlerReturned() -> (releasesAdmission: Bool, leavesGate: Bool) {
    defer {
      self.isAdmitted = false
      if self.gate == .inside { self.gate = .left }
    }
    return (self.isAdmitted, self.gate == .inside)
  }

  /// - Returns: false when the call has been at its method's gate before.
  mutating func approachGate() -> Bool {
    guard self.gate == .outside else { return false }
    self.gate = .entering
    return true
  }

  mutating func enterGate() { self.gate = .inside }
}
