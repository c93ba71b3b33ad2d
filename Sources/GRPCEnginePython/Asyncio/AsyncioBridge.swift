internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineStatistics
internal import GRPCEngineWire
internal import Glibc
internal import NIOCore
internal import PythonInterop
internal import Synchronization

/// The way from the event loops to an asyncio loop, and the calls that run there.
///
/// This is the third hand-over beside `WorkerPool` and `CallOutbox`, and built like the latter:
/// whatever happens to calls goes into one inbox, and the asyncio loop is woken, by a socket
/// that it watches, only when the inbox was empty. So a loop that is busy takes all that came in
/// meanwhile in one turn.
final class AsyncioBridge: @unchecked Sendable {
  // Safe to share: the inbox is behind its mutex, the descriptor never changes, and everything
  // else is touched with the GIL held only.

  enum Event: Sendable {
    /// A call that no Python has seen yet.
    case start(PythonJob)
    /// A call whose handler was found on a worker; the handler's cell is the call's own.
    case handOver(PythonJob)
    case readable(Int)
    case writable(Int)
    /// The call has ended, and not by its servicer's status.
    case ended(Int)
  }

  /// What a server without async methods never asks for: a thread with a loop.
  private enum Loop { case missing, asked, attached, closed }

  private struct State {
    var inbox: [Event] = []
    /// Since when there is something in the inbox, when there is.
    var waitingSince = NIODeadline.uptimeNanoseconds(0)
    var loop = Loop.missing
    /// A pair of sockets, made when a loop is attached: a process may fork before that, and two that shared one
    /// would take each other's wake-ups.
    var descriptor: CInt = -1
    var wakeEnd: CInt = -1
  }

  private let state = Mutex(State())
  private let control: ControlThread
  private let slot: StatisticsSlot

  // With the GIL held only.
  private var createTask: PythonHandle?
  private var running: [Int: AsyncServicerContext] = [:]
  private var lastID = 0

  init(control: ControlThread, slot: StatisticsSlot) {
    self.control = control
    self.slot = slot
  }

  deinit {
    let ends = self.state.withLock { [$0.descriptor, $0.wakeEnd] }
    for end in ends where end >= 0 { close(end) }
  }

  // MARK: Any thread

  /// Puts an event into the inbox. Never takes the GIL.
  func post(_ event: Event) {
    var mustAsk = false
    var wakeEnd: CInt?
    let isClosed = self.state.withLock { state in
      if state.loop == .closed { return true }
      mustAsk = state.loop == .missing
      if mustAsk { state.loop = .asked }
      state.inbox.append(event)
      guard state.inbox.count == 1 else { return false }
      state.waitingSince = .now()
      if state.loop == .attached { wakeEnd = state.wakeEnd }
      return false
    }
    if isClosed { return Self.refuse(event) }
    if mustAsk { self.control.submit(.spawnLoop) }
    if let wakeEnd { Self.wake(wakeEnd) }
  }

  private static func wake(_ end: CInt) {
    var byte: UInt8 = 0
    // A socket that is full wakes as well.
    _ = write(end, &byte, 1)
  }

  private func takeWakeUps() {
    let descriptor = self.descriptor
    withUnsafeTemporaryAllocation(byteCount: 64, alignment: 1) { buffer in
      while read(descriptor, buffer.baseAddress, buffer.count) == buffer.count {}
    }
  }

  private static func refuse(_ event: Event) {
    switch event {
    case .start(let job), .handOver(let job):
      job.call.finish(Status(code: .unavailable, details: "Server shutting down"), isLast: true)
    case .readable, .writable, .ended:
      break
    }
  }

  /// Since when the loop has taken nothing of what waits for it; `nil` when nothing waits.
  var oldestWaiting: NIODeadline? {
    self.state.withLock { $0.inbox.isEmpty ? nil : $0.waitingSince }
  }

  // MARK: The asyncio loop's thread, with the GIL held

  /// Readable while the inbox has something; -1 before `attach`.
  var descriptor: CInt { self.state.withLock { $0.descriptor } }

  /// Takes calls from now on; the caller then watches `descriptor` and calls `run`.
  func attach(createTask: PythonPointer) {
    self.createTask = PythonHandle(retaining: createTask)
    var ends: [CInt] = [-1, -1]
    // In one step, as another thread may start a program: what pipe2(2) does, which Swift lacks.
    let flags = SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue
    if socketpair(AF_UNIX, CInt(flags), 0, &ends) != 0 { ends = [-1, -1] }
    let hasWaited = self.state.withLock { state in
      state.descriptor = ends[0]
      state.wakeEnd = ends[1]
      state.loop = .attached
      return !state.inbox.isEmpty
    }
    if hasWaited { Self.wake(ends[1]) }
  }

  /// The loop takes no more calls.
  func detach() {
    let left = self.state.withLock { state -> [Event] in
      state.loop = .closed
      defer { state.inbox = [] }
      return state.inbox
    }
    for event in left { Self.refuse(event) }
    let running = self.running
    self.running = [:]
    self.slot[.loopCalls].subtract(running.count)
    for context in running.values { context.forget() }
    self.createTask = nil
  }

  /// Calls that run on the loop.
  var runningCount: Int { self.running.count }

  /// The tasks of those calls, as a list.
  func makeTasks() -> PythonPointer? {
    guard let list = PythonReference(owning: PyList_New(0)) else { return nil }
    for case let task? in self.running.values.map(\.task) {
      guard PyList_Append(list.pointer, task.pointer) == 0 else { return nil }
    }
    return list.take()
  }

  /// The calls that run on the loop.
  var contexts: some Sequence<AsyncServicerContext> { self.running.values }

  /// Takes whatever is in the inbox.
  func run(_ server: PythonServer) {
    // First: what is posted after this wakes the loop again.
    self.takeWakeUps()
    var batch: [Event] = []
    self.state.withLock { state in
      swap(&batch, &state.inbox)
      state.inbox.reserveCapacity(min(batch.count, 256))
    }
    for event in batch {
      switch event {
      case .start(let job):
        self.start(job.call, job.handler.method.value, server)
      case .handOver(let job):
        let method = job.handler.method.value
        // Emptied here, where the GIL is held: an event loop may release the rest.
        job.handler.method.empty()
        self.start(job.call, method, server)
      case .readable(let id):
        self.running[id]?.wakeReader()
      case .writable(let id):
        self.running[id]?.wakeWriter()
      case .ended(let id):
        self.running[id]?.cancelTask()
      }
    }
  }

  private func start(_ call: Call, _ method: BoundMethod?, _ server: PythonServer) {
    self.lastID += 1
    let id = self.lastID
    let context = AsyncServicerContext(
      call: call,
      method: method,
      server: server,
      bridge: self,
      id: id
    )
    // Its peer has gone, or its time, while it was queued: it never runs.
    let isRegistered = call.onTermination { [self] termination in
      if termination != .answered { self.post(.ended(id)) }
    }
    guard isRegistered, let createTask = self.createTask else { return call.handlerReturned() }
    self.running[id] = context
    self.slot[.loopCalls].add()
    call.handlerStarted()
    guard
      let object = PythonReference(
        owning: EngineTypes.current?.asyncServicerContext.make(context)
      )
    else { return context.failToStart() }
    context.object = PythonHandle(retaining: object.pointer)
    guard let coroutine = context.makeCoroutine(object.pointer),
      let task = PythonReference(owning: py_call1(createTask.pointer, coroutine.pointer))
    else { return context.failToStart() }
    context.task = PythonHandle(task)
  }

  /// A call's task has nothing left to do.
  func remove(_ id: Int) {
    if self.running.removeValue(forKey: id) != nil { self.slot[.loopCalls].subtract() }
  }
}
