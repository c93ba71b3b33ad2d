internal import CPythonABI
internal import GRPCEngineLocks
internal import GRPCEngineServer
internal import GRPCEngineStatistics
internal import GRPCEngineWire
internal import Glibc
internal import NIOCore
internal import PythonInterop

/// The way from the event loops to an asyncio loop, and the calls that run there.
///
/// This is the third hand-over beside `WorkerPool` and `CallOutbox`, and built like the latter:
/// whatever happens to calls goes into one inbox, and the asyncio loop is woken, by an eventfd
/// that it watches, only when the inbox was empty. So a loop that is busy takes all that came in
/// meanwhile in one turn.
///
/// There may be one loop after another: one that ends, or cannot begin, costs the calls of that moment
/// UNAVAILABLE, and the next call asks for a new one.
final class AsyncioBridge: @unchecked Sendable {
  // Safe to share: the inbox and its descriptor are behind the mutex, and everything else is
  // touched with the GIL held only.

  enum Event: Sendable {
    /// A call that no Python has seen yet.
    case start(PythonJob)
    /// A call whose handler was found on a worker; the handler's cell is the call's own.
    case handOver(PythonJob)
    case readable(Int)
    case writable(Int)
    /// The call has ended, and not by its servicer's status.
    case ended(Int)

    var subject: LoopInbox<Event>.Subject {
      switch self {
      case .start, .handOver: .newCall
      case .readable, .writable, .ended: .knownCall
      }
    }
  }

  private struct State {
    var inbox = LoopInbox<Event>()
    /// An eventfd(2) of the loop that is attached; -1 without one. Written to and closed under the
    /// mutex, so that nobody writes to a descriptor that is somebody else's by then.
    var descriptor: CInt = -1

    func wake() {
      var one: UInt64 = 1
      _ = write(self.descriptor, &one, MemoryLayout.size(ofValue: one))
    }

    mutating func closeDescriptor() {
      if self.descriptor >= 0 { Glibc.close(self.descriptor) }
      self.descriptor = -1
    }
  }

  private let state = Locked(State())
  private let control: ControlThread
  private let slot: StatisticsSlot

  /// The loop that is attached. With the GIL held only, as those of it are who ask for figures.
  private var loop: AsyncioLoop?
  /// No two calls have the same, on whatever loops. With the GIL held only.
  private var lastID = 0

  init(control: ControlThread, slot: StatisticsSlot) {
    self.control = control
    self.slot = slot
  }

  deinit {
    self.state.withLock { $0.closeDescriptor() }
  }

  // MARK: Any thread

  /// Puts an event into the inbox. Never takes the GIL.
  func post(_ event: Event) {
    let (posted, isClosed) = self.state.withLock { state in
      let posted = state.inbox.post(event, about: event.subject, now: .now())
      if posted == .wake { state.wake() }
      return (posted, state.inbox.isClosed)
    }
    switch posted {
    case .waits, .wake: break
    case .ask: self.control.submit(.spawnLoop)
    case .refused: Self.end(event, isClosed ? Self.shuttingDown : Self.withoutLoop)
    }
  }

  /// A call has ended while it waited for the loop.
  func abandoned() {
    // What is found is dropped when the mutex is given back.
    _ = self.state.withLock { state in
      state.inbox.abandoned { event in
        // A call that was handed over has begun.
        if case .start(let job) = event { job.isAbandoned } else { false }
      }
    }
  }

  private static let shuttingDown = Status(code: .unavailable, details: "Server shutting down")
  private static let withoutLoop = Status(
    code: .unavailable,
    details: "The asyncio loop of the server has ended"
  )
  private static let unstarted = Status(
    code: .unavailable,
    details: "The asyncio loop of the server cannot begin"
  )

  private static func end(_ event: Event, _ status: Status) {
    switch event {
    case .start(let job), .handOver(let job):
      job.call.finish(status, isLast: true)
    case .readable, .writable, .ended:
      break
    }
  }

  /// Since when the loop has taken nothing of what waits for it; `nil` when nothing waits.
  var oldestWaiting: NIODeadline? { self.state.withLock { $0.inbox.oldest } }

  // MARK: With the GIL held

  /// Takes calls from now on; the caller then watches the descriptor and calls `run`.
  ///
  /// - Parameter descriptor: an eventfd(2) that does not block; the bridge's from now on.
  /// - Returns: false when no loop is wanted; the descriptor is closed then.
  func attach(createTask: PythonPointer, descriptor: CInt) -> Bool {
    let isWanted = self.state.withLock { state in
      guard let mustWake = state.inbox.attach() else {
        Glibc.close(descriptor)
        return false
      }
      state.descriptor = descriptor
      if mustWake { state.wake() }
      return true
    }
    guard isWanted else { return false }
    self.loop = AsyncioLoop(createTask: PythonHandle(retaining: createTask), slot: self.slot)
    return true
  }

  /// The loop that was asked for does not come.
  func failed() {
    let left = self.state.withLock { $0.inbox.failed() }
    self.refuse(left, Self.unstarted)
  }

  /// The loop has ended without being asked to. Its calls end; the tasks are cancelled, should
  /// anything of it still run.
  func lost() {
    let left = self.state.withLock { state in
      state.closeDescriptor()
      return state.inbox.lost()
    }
    self.refuse(left, Self.withoutLoop)
    let loop = self.loop
    self.loop = nil
    for context in loop?.removeAll() ?? [] { context.loopEnded(Self.withoutLoop) }
  }

  /// No loop takes calls any more.
  func close() {
    let left = self.state.withLock { state in
      state.closeDescriptor()
      return state.inbox.close()
    }
    self.refuse(left, Self.shuttingDown)
    let loop = self.loop
    self.loop = nil
    for context in loop?.removeAll() ?? [] { context.forget() }
  }

  private func refuse(_ events: [Event], _ status: Status) {
    for event in events {
      if case .handOver(let job) = event { job.handler.method.empty() }
      Self.end(event, status)
    }
  }

  /// Calls that run on the loop.
  var runningCount: Int { self.contexts.count }

  /// The tasks of those calls, as a list.
  func makeTasks() -> PythonPointer? {
    guard let list = PythonReference(owning: PyList_New(0)) else { return nil }
    for case let task? in self.contexts.map(\.task) {
      guard PyList_Append(list.pointer, task.pointer) == 0 else { return nil }
    }
    return list.take()
  }

  /// The calls that run on the loop.
  var contexts: [AsyncServicerContext] { self.loop.map { Array($0.contexts) } ?? [] }

  // MARK: The asyncio loop's thread, with the GIL held

  /// Takes whatever is in the inbox.
  func run(_ server: PythonServer) {
    server.endIfLost()
    guard let loop = self.loop else { return }
    let batch = self.state.withLock { state in
      // What is posted after this wakes the loop again.
      var count: UInt64 = 0
      _ = read(state.descriptor, &count, MemoryLayout.size(ofValue: count))
      return state.inbox.take()
    }
    for event in batch {
      switch event {
      case .start(let job):
        self.start(job, server, loop)
      case .handOver(let job):
        self.start(job, server, loop)
        // Emptied here, where the GIL is held: an event loop may release the rest.
        job.handler.method.empty()
      case .readable(let id):
        loop[id]?.wakeReaders()
      case .writable(let id):
        loop[id]?.wakeWriters()
      case .ended(let id):
        loop[id]?.cancelTask()
      }
    }
  }

  private func start(_ job: PythonJob, _ server: PythonServer, _ loop: AsyncioLoop) {
    let (call, method) = (job.call, job.handler.method)
    self.lastID += 1
    let id = self.lastID
    let context = AsyncServicerContext(
      call: call,
      method: method.value,
      server: server,
      bridge: self,
      loop: loop,
      id: id
    )
    // Its peer has gone, or its time, while it was queued: it never runs.
    let isRegistered =
      call.handlerBegins()
      && call.onTermination { [self] termination in
        if termination != .answered { self.post(.ended(id)) }
      }
    guard isRegistered else { return call.handlerReturned() }
    loop.insert(context)
    call.handlerStarted()
    guard
      let object = PythonReference(
        owning: EngineTypes.current?.asyncServicerContext.make(context)
      )
    else { return context.failToStart() }
    context.object = PythonHandle(retaining: object.pointer)
    guard let coroutine = context.makeCoroutine(object.pointer),
      let task = loop.makeTask(coroutine.pointer, method.variables, server.bindings.coroutines)
    else { return context.failToStart() }
    context.task = PythonHandle(task)
  }
}
