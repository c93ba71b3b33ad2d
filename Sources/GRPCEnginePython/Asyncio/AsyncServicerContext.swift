internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// The native side of a `grpc.aio.ServicerContext`: one call, as code on an asyncio loop sees it.
///
/// Nothing here waits. What would have to wait says so, and the coroutines of
/// `django_grpc.engine.coroutines` then wait for a future that `wakeReader` or `wakeWriter` sets.
/// Touched on the loop's thread, with the GIL held.
final class AsyncServicerContext: ServicerContext {
  let id: Int
  let bridge: AsyncioBridge
  /// `nil` when the call is no longer the loop's: who keeps the context keeps no loop.
  private var loop: AsyncioLoop?
  /// The context as Python has it, and the task that runs the servicer. Both refer back to this:
  /// `returned` undoes that.
  var object: PythonHandle?
  var task: PythonHandle?
  /// What `abort` raised; whoever swallows it cannot go on with the call.
  var abortError: PythonHandle?
  /// What interceptors have set of context variables, for a method on a worker thread.
  var variables: PythonHandle?
  /// A list of what `add_done_callback` was given.
  var doneCallbacks: PythonHandle?
  /// Whether the watchdog has told of the call.
  var isReported = false
  /// The task has been told that the call has ended.
  private(set) var isCancelled = false
  private var hasBegun = false
  private var hasReturned = false
  private var readers = Waiters()
  private var writers = Waiters()
  private var sendsSinceTurn = 0

  /// The futures of those who wait for one thing: tasks of the servicer's own may wait beside its
  /// call's.
  private struct Waiters {
    private(set) var futures: [PythonHandle] = []
    /// Whether the call has been asked to tell, and has not: once is enough for all of them.
    private var areAwaited = false

    /// - Parameter mayTell: whether the call can tell anything; else it is not asked.
    /// - Returns: whether the call is to be asked.
    mutating func add(_ future: PythonPointer, mayTell: Bool) -> Bool {
      self.futures.append(PythonHandle(retaining: future))
      guard mayTell, !self.areAwaited else { return false }
      self.areAwaited = true
      return true
    }

    mutating func remove(_ future: PythonPointer) {
      self.futures.removeAll { $0.pointer == future }
    }

    mutating func takeAll() -> [PythonHandle] {
      defer { self = Waiters() }
      return self.futures
    }
  }

  /// A generator whose peer keeps up would never give the loop to anybody else.
  private static let sendsPerTurn = 64

  init(
    call: Call,
    method: BoundMethod?,
    server: PythonServer,
    bridge: AsyncioBridge,
    loop: AsyncioLoop,
    id: Int
  ) {
    self.id = id
    self.bridge = bridge
    self.loop = loop
    super.init(call: call, method: method, server: server)
  }

  override var followsAsyncio: Bool { true }

  // MARK: Life

  /// The coroutine that runs the call; `nil` with an exception set.
  func makeCoroutine(_ object: PythonPointer) -> PythonReference? {
    let run = self.bindings.coroutines
    guard let method = self.method else {
      return PythonReference(owning: py_call1(run.resolved.pointer, object))
    }
    return PythonReference(
      owning: py_call2(run.function(of: method).pointer, object, method.behavior.pointer)
    )
  }

  /// The task runs. May be called more than once.
  func begin() {
    guard !self.hasBegun else { return }
    self.hasBegun = true
    self.server.surroundings?.perform(.begin)
  }

  /// Ends a call that could not even be begun.
  func failToStart() {
    if let error = PythonError.fetch() { self.bindings.log("Cannot run a call", error) }
    self.call.finish(Status(code: .internalError, details: "Cannot run the call"))
    self.returned()
  }

  /// Tells the task that the call has ended without it.
  func cancelTask() {
    guard !self.hasReturned, !self.isCancelled else { return }
    self.isCancelled = true
    guard let object = self.object, let task = self.task,
      let result = PythonReference(
        owning: py_call2(self.bindings.coroutines.cancel.pointer, object.pointer, task.pointer)
      )
    else {
      if let error = PythonError.fetch() { self.bindings.log("Cannot cancel a call", error) }
      return
    }
    _ = consume result
    // The call's own task has been woken by its cancellation. It may wait for others of the
    // servicer's, which nobody cancels: they hear what there is to hear.
    for future in self.readers.takeAll() + self.writers.takeAll() { self.wake(future) }
  }

  /// Nothing of the servicer runs any more. May be called more than once.
  func returned() {
    self.server.endIfLost()
    guard !self.hasReturned else { return }
    self.hasReturned = true
    // The loop has not heard yet that the peer has gone, and now nobody is told: tasks of the
    // servicer's own, which go on, are to know.
    if let termination = self.call.termination, termination != .answered { self.isCancelled = true }
    self.end()
    self.call.handlerReturned()
    self.server.watchdog.ended(self.call, wasReported: self.isReported)
    self.loop?.remove(self)
    // Tasks of the servicer's own that wait still hear that there is nothing to wait for.
    let waiting = self.readers.futures + self.writers.futures
    self.forget()
    for future in waiting { self.wake(future) }
  }

  /// Ends the call of a loop that has ended. The task is cancelled, should somebody run it still.
  func loopEnded(_ status: Status) {
    guard !self.hasReturned else { return }
    self.call.finish(status)
    self.cancelTask()
    // Nobody may ever run it again, so that nobody would undo these.
    self.object = nil
    self.task = nil
    self.readers = Waiters()
    self.writers = Waiters()
  }

  /// Gives the call to the workers, as its handler turned out to be an ordinary function.
  func handOverToWorkers() {
    let cell = BoundMethodCell(self.method, variables: self.variables)
    let handler = PythonMethodHandler(
      method: cell,
      startsOnFirstMessage: false,
      isStream: self.method?.kind != .unaryUnary,
      destination: .workers(self.server.pool)
    )
    self.hasReturned = true
    self.end()
    self.loop?.remove(self)
    self.server.pool.submit(PythonJob(call: self.call, handler: handler))
    self.forget()
  }

  private func end() {
    if self.hasBegun { self.server.surroundings?.perform(.end) }
  }

  /// Drops what refers back to this.
  func forget() {
    self.loop = nil
    self.object = nil
    self.task = nil
    self.readers = Waiters()
    self.writers = Waiters()
    self.doneCallbacks = nil
    self.abortError = nil
    self.variables = nil
  }

  // MARK: Messages

  enum Received: ~Copyable {
    case message(PythonReference)
    case end
    case pending
    /// An exception is set.
    case raised
  }

  /// The next request, without waiting for it. When its peer has gone there is none, as in grpc.aio.
  func receive() -> Received {
    if self.isCancelled, self.abortError == nil { return .end }
    guard self.mayGoOn() else { return .raised }
    let next: Call.NextMessage
    do throws(MessageCodecError) {
      next = try self.call.nextMessage()
    } catch {
      self.call.finish(error.status)
      self.raiseEnded()
      return .raised
    }
    switch next {
    case .message(let payload):
      guard
        let bytes = PythonReference(
          owning: payload.withUnsafeReadableBytes { PythonBytes.make($0) }
        )
      else { return .raised }
      guard let deserializer = self.method?.requestDeserializer else { return .message(bytes) }
      guard
        let request = PythonReference(
          owning: py_call1(deserializer.pointer, bytes.pointer)
        )
      else { return .raised }
      return .message(request)
    case .end:
      return .end
    case .pending:
      return .pending
    case .terminated(.answered):
      PythonError.raise(self.bindings.coroutines.usageError.pointer, "RPC already finished.")
      return .raised
    case .terminated:
      return .pending
    }
  }

  /// Sends one response of a stream.
  ///
  /// - Returns: whether the next one may follow at once; `nil` with an exception set.
  func send(_ response: PythonPointer) -> Bool? {
    guard self.mayGoOn() else { return nil }
    if let kind = self.method?.kind, !kind.isResponseStreaming {
      // grpcio's clients would wait for ever: they take a second message for none.
      PythonError.raiseTypeError(
        "a method that answers with one message returns it; it can't write or yield any"
      )
      return nil
    }
    guard let bytes = self.serialized(response),
      let message = PythonBytes.contents(bytes.pointer)
    else { return nil }
    guard self.isSendable(message) else {
      self.raiseEnded()
      return nil
    }
    let result: Call.SendResult
    do throws(MessageCodecError) {
      result = try self.call.send(message, mayCompress: self.takeMayCompress())
    } catch {
      self.call.finish(error.status)
      self.raiseEnded()
      return nil
    }
    self.sendsSinceTurn += 1
    guard result == .accepted, self.sendsSinceTurn < Self.sendsPerTurn else {
      self.sendsSinceTurn = 0
      return false
    }
    return true
  }

  /// Sends the only response and the status.
  ///
  /// - Returns: false with an exception set.
  func answer(_ response: PythonPointer) -> Bool {
    guard self.mayEnd() else { return false }
    let status = self.status(.ok)
    // As grpcio: what is answered beside a failure is not looked at.
    guard status.code == .ok else {
      self.call.finish(status, metadata: self.wireTrailingMetadata)
      return true
    }
    guard let bytes = self.serialized(response),
      let message = PythonBytes.contents(bytes.pointer)
    else { return false }
    guard self.isSendable(message) else { return true }
    do throws(MessageCodecError) {
      try self.call.respond(
        message,
        mayCompress: self.takeMayCompress(),
        status: status,
        metadata: self.wireTrailingMetadata
      )
    } catch {
      self.call.finish(error.status)
    }
    return true
  }

  private func serialized(_ response: PythonPointer) -> PythonReference? {
    if let message = EngineTypes.current?.serializedMessage.checkedPayload(response) {
      return PythonReference(retaining: message.bytes.pointer)
    }
    guard let serializer = self.method?.responseSerializer else {
      if py_is_bytes(response) != 0 { return PythonReference(retaining: response) }
      PythonError.raiseTypeError("a response without a serializer must be bytes")
      return nil
    }
    guard
      let bytes = PythonReference(
        owning: py_call1(serializer.pointer, response)
      )
    else { return nil }
    guard py_is_bytes(bytes.pointer) != 0 else {
      PythonError.raiseTypeError("the response's serializer gave no bytes")
      return nil
    }
    return bytes
  }

  /// Whether the call takes part in anything still; an exception is set when not.
  func mayGoOn() -> Bool {
    self.server.endIfLost()
    if let error = self.abortError {
      PythonError.raiseAgain(error.pointer)
      return false
    }
    if self.isCancelled {
      self.raiseEnded()
      return false
    }
    if self.call.termination == .answered {
      PythonError.raise(self.bindings.coroutines.usageError.pointer, "RPC already finished.")
      return false
    }
    return true
  }

  /// Whether a servicer that has returned gives the call its status.
  func mayEnd() -> Bool {
    if self.abortError != nil {
      self.bindings.log("Abort error unexpectedly suppressed in \(self.call.head.path)")
    }
    return self.mayGoOn()
  }

  /// For servicers that go on after their call has ended.
  func raiseEnded() {
    PythonError.raise(self.bindings.coroutines.internalError.pointer, "The call has ended.")
  }

  // MARK: Waiting

  /// Has `future` set when there is something to read.
  func setReader(_ future: PythonPointer) {
    // Of a call that has ended the task is about to hear, and so are the servicer's others.
    guard self.mayWait(future), self.readers.add(future, mayTell: self.call.isActive) else {
      return
    }
    let (bridge, id) = (self.bridge, self.id)
    self.call.whenReadable { bridge.post(.readable(id)) }
  }

  /// Has `future` set when a response is welcome.
  func setWriter(_ future: PythonPointer) {
    guard self.mayWait(future), self.writers.add(future, mayTell: self.call.isActive) else {
      return
    }
    let (bridge, id) = (self.bridge, self.id)
    self.call.whenWritable { bridge.post(.writable(id)) }
  }

  /// Nobody waits for `future` any more.
  func forget(_ future: PythonPointer) {
    self.readers.remove(future)
    self.writers.remove(future)
  }

  func wakeReaders() {
    guard self.mayWake else { return }
    for future in self.readers.takeAll() { self.wake(future) }
  }

  func wakeWriters() {
    guard self.mayWake else { return }
    for future in self.writers.takeAll() { self.wake(future) }
  }

  /// Whether there will be news. When not, `future` is set, and whoever waits for it sees why.
  private func mayWait(_ future: PythonPointer) -> Bool {
    if self.hasReturned { self.wake(PythonHandle(retaining: future)) }
    return !self.hasReturned
  }

  /// A call that has ended wakes its waiters too; they hear of that by being cancelled.
  private var mayWake: Bool {
    guard let termination = self.call.termination else { return true }
    return termination == .answered
  }

  private func wake(_ future: PythonHandle) {
    if let result = py_call1(self.bindings.coroutines.wake.pointer, future.pointer) {
      py_decref(result)
    } else if let error = PythonError.fetch() {
      self.bindings.log("Cannot wake a call", error)
    }
  }
}
