internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineStatistics
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import GRPCEngineWorkers
internal import NIOCore
internal import PythonInterop

/// A server whose servicers are Python's: what is behind `_engine.Server`.
///
/// Everything here is called with the GIL held, unless it says otherwise.
final class PythonServer {
  let configuration: ServerConfiguration
  let bindings: Bindings
  let control = ControlThread()
  let callbacks: CallbackThread
  private let renewals: CallbackThread
  let pool: WorkerPool
  let bridge: AsyncioBridge
  /// `resolver(path, invocation_metadata)` gives the method handler of a call that has to be asked
  /// for: with interceptors, or from a generic handler.
  private(set) var resolver: PythonHandle?
  private var isResolverAsync = false
  /// Called without arguments when the server's health has changed.
  var healthListener: PythonHandle?
  /// Where grpcio's two servers differ, contexts are as grpc.aio's.
  var followsAsyncio = false
  /// What is put around everything that runs for a call.
  var surroundings: CallSurroundings?
  let server: Server
  private var methods: [BoundMethodCell] = []
  /// What renews credentials, by the index that jobs of the control thread have.
  private var refreshers: [PythonHandle] = []
  let watchdog = Watchdog()
  private let busyTime: StatisticsCell
  private(set) var callLog: CallLogReader?
  private var refusedThreads = NoticeLimit()
  /// Whether this process was forked from the one that serves: there are no other threads in it.
  var isLost = false

  /// Ends the process if code of a call has forked it, which is done now. Its call is its parent's
  /// to answer, and locks may be in the hands of threads that are not here.
  func endIfLost() {
    guard self.isLost else { return }
    if let result = py_call0(self.bindings.endChild.pointer) {
      py_decref(result)
    } else {
      PyErr_Clear()
    }
  }

  init(configuration: ServerConfiguration, limits: WorkerPool.Schedule.Limits, bindings: Bindings) {
    // Before the threads that come with a server: each would have an arena of its own by now.
    ProcessMemory.keepFreed()
    self.configuration = configuration
    self.bindings = bindings
    self.server = Server(configuration: configuration)
    self.busyTime = self.server.statistics.slot[.busyNanoseconds]
    self.callbacks = CallbackThread(.callbacks, control: self.control)
    self.renewals = CallbackThread(.renewals, control: self.control)
    self.bridge = AsyncioBridge(control: self.control, slot: self.server.statistics.slot)
    self.pool = WorkerPool(
      limits: limits,
      control: self.control,
      backlog: self.server.backlog,
      slot: self.server.statistics.slot
    )
    self.server.reportWorkers { [pool] in
      let figures = pool.statistics
      return WorkerFigures(
        queued: figures.queued,
        busy: figures.awake,
        idle: figures.idle,
        held: figures.held
      )
    }
    self.server.observeNotices { [control] in control.submit(.log($0)) }
    self.server.observeIdleness { [control] in control.submit(.giveBackMemory) }
  }

  /// Binds an address for figures over HTTP.
  ///
  /// - Returns: the port bound; `nil` with an exception set.
  func addOperationsPort(_ address: String) -> Int? {
    ListeningSockets.withoutGIL { try self.server.addOperationsPort(address) }
  }

  deinit {
    // The engine may drop its handlers later and elsewhere, where no Python object may die.
    for method in self.methods { method.empty() }
    self.bridge.close()
    Python.detached {
      self.server.drain {}
      self.server.cancelAllCalls()
    }
    self.pool.stop()
    self.callbacks.stop()
    self.renewals.stop()
    self.control.submit(.stop)
  }

  // MARK: Methods

  /// Registers a method that always runs the same handler.
  ///
  /// - Returns: false with an exception set.
  func addMethod(_ path: String, _ handler: PythonPointer) -> Bool {
    guard let method = BoundMethod(handler, isRegistered: true) else { return false }
    let cell = BoundMethodCell(method)
    self.methods.append(cell)
    self.register(path, cell, kind: method.kind, isAsync: method.colour != .plain)
    return true
  }

  /// Limits what methods may cost, of those that are added afterwards.
  func setLimits(_ limits: MethodLimits, for pattern: String) {
    self.server.methods.setLimits(limits, for: pattern)
  }

  /// Registers a method whose handler the resolver gives, call by call.
  func addResolvedMethod(_ path: String, kind: CallKind) {
    self.register(path, BoundMethodCell(nil), kind: kind, isAsync: self.isResolverAsync)
  }

  private func register(
    _ path: String,
    _ cell: BoundMethodCell,
    kind: CallKind,
    isAsync: Bool
  ) {
    let handler = PythonMethodHandler(
      method: cell,
      startsOnFirstMessage: !kind.isRequestStreaming,
      isStream: kind != .unaryUnary,
      destination: isAsync ? .asyncio(self.bridge) : .workers(self.pool)
    )
    self.server.methods.register(handler, for: path, kind: kind)
  }

  /// - Parameters:
  ///   - isFallback: whether the resolver is asked for paths that nobody registered too.
  ///   - isAsync: whether it is a coroutine function; it then runs on the asyncio loop.
  func setResolver(_ resolver: PythonPointer, isFallback: Bool, isAsync: Bool) {
    self.resolver = PythonHandle(retaining: resolver)
    self.isResolverAsync = isAsync
    let handler = PythonMethodHandler(
      method: BoundMethodCell(nil),
      startsOnFirstMessage: false,
      isStream: true,
      destination: isAsync ? .asyncio(self.bridge) : .workers(self.pool)
    )
    self.server.methods.setFallback(isFallback ? handler : nil)
  }

  // MARK: Life cycle

  /// - Parameter refresher: called before each connection, to renew the credentials if they have to
  ///   be.
  /// - Returns: the port bound; `nil` with an exception set.
  func addPort(
    _ address: String,
    _ credentials: ServerCredentials?,
    refresher: PythonHandle?
  ) -> Int? {
    var refresh: CredentialsRefresh?
    if let refresher {
      let index = self.refreshers.count
      self.refreshers.append(refresher)
      refresh = { [renewals] in renewals.submit(.refreshCredentials(index, whenDone: $0)) }
    }
    return ListeningSockets.withoutGIL {
      try self.server.addPort(address, credentials: credentials, refresh: refresh)
    }
  }

  private func refreshCredentials(_ index: Int) {
    if let result = py_call0(self.refreshers[index].pointer) {
      py_decref(result)
    } else if let error = PythonError.fetch() {
      self.bindings.log("The certificates can't be renewed: those of before are used", error)
    }
  }

  /// - Returns: false with an exception set.
  func adoptConnections(from socket: Int, released: Int, _ credentials: ServerCredentials?) -> Bool
  {
    guard let socket = CInt(exactly: socket), let released = CInt(exactly: released), socket >= 0
    else {
      PythonError.raiseValueError("a file descriptor must be 0 or more")
      return false
    }
    do {
      let source = ConnectionIntake.Source(
        socket: socket,
        released: released < 0 ? nil : released,
        credentials: credentials
      )
      try self.server.adoptConnections(from: source)
      return true
    } catch let error as Server.WrongState {
      PythonError.raiseValueError(error.message)
    } catch {
      PythonError.raiseRuntimeError("\(error)")
    }
    return false
  }

  /// - Returns: false with an exception set.
  func start() -> Bool {
    do {
      try Python.detachedThrowing { try self.server.start() }
      return true
    } catch let error as Server.WrongState {
      PythonError.raiseValueError(error.message)
    } catch let error as BoundSocket.Failure {
      PythonError.raiseRuntimeError("Cannot start the server: \(error.message).")
    } catch {
      PythonError.raiseRuntimeError("Cannot start the server: \(error)")
    }
    return false
  }

  func drain(_ whenStopped: PythonPointer) {
    let transfer = PythonTransfer(retaining: whenStopped)
    let control = self.control
    Python.detached { self.server.drain { control.submit(.call(transfer)) } }
  }

  func cancelAllCalls() { Python.detached { self.server.cancelAllCalls() } }

  func cancelAllCalls(after seconds: Double) {
    // What is no number counts as 0, too.
    let time = TimeAmount(clampingSeconds: max(0, seconds))
    Python.detached { self.server.cancelAllCalls(after: time) }
  }

  /// Has calls that end recorded, for `CallLogReader.next`. It must be called before `start`.
  func enableCallLog(_ filter: CallLog.Filter) {
    let reader = CallLogReader(filter, statistics: self.server.statistics)
    self.callLog = reader
    self.server.observeCalls { reader.log.record($0) }
  }

  /// Ends the worker threads, once the queue is empty, and then the control thread.
  func stopThreads() {
    // A servicer may refer to its server, which the garbage collector does not see from here.
    for method in self.methods { method.empty() }
    self.resolver = nil
    self.callLog?.log.close()
    self.pool.stop()
    self.callbacks.stop()
    self.renewals.stop()
    self.control.submit(.stop)
  }

  // MARK: Threads

  /// The body of a worker thread.
  func runWorker(_ object: PythonPointer) {
    let worker = WorkerThread()
    defer { worker.end() }
    self.pool.enter(worker)
    self.watchdog.enter(worker)
    defer { self.watchdog.leave(worker) }
    self.surroundings?.perform(.start)
    while let job = self.pool.next(worker) {
      self.run(job, on: worker)
      self.endIfLost()
      self.pool.finished(job)
    }
  }

  private func run(_ job: PythonJob, on worker: WorkerThread) {
    // Its peer has gone, or its time, while it was queued: it never runs.
    guard job.call.handlerBegins() else { return job.call.handlerReturned() }
    let begun = job.call.handlerStarted(thread: worker.systemID)
    worker.current = job.call
    worker.isReported = false
    defer {
      worker.current = nil
      self.busyTime.add(Int((NIODeadline.now() - begun).nanoseconds))
      self.watchdog.ended(job.call, wasReported: worker.isReported)
    }
    let context = SyncServicerContext(
      call: job.call,
      method: job.handler.method.value,
      server: self,
      worker: worker
    )
    guard
      let object = PythonReference(
        owning: EngineTypes.current?.servicerContext.make(context)
      )
    else { return self.fail(context) }
    guard
      let runCall = self.bindings.coroutines.carrying(
        job.handler.method.variables,
        self.bindings.runCall
      )
    else { return self.fail(context) }
    if let pool = context.method?.threadPool {
      return self.submit(context, object.pointer, runCall.pointer, to: pool.pointer)
    }
    // Each call gets a copy of the thread's context: what a servicer sets stays with its call,
    // while what the thread has kept (Django's cache connections) is there for every call.
    guard let python = PythonReference(owning: py_call0(self.bindings.copyContext.pointer)),
      let result = PythonReference(
        owning: py_call_method2(
          python.pointer,
          self.bindings.run.pointer,
          runCall.pointer,
          object.pointer
        )
      )
    else { return self.fail(context) }
    _ = consume result
  }

  /// Hands a call to the pool that its behaviour asks for.
  private func submit(
    _ context: SyncServicerContext,
    _ object: PythonPointer,
    _ runCall: PythonPointer,
    to pool: PythonPointer
  ) {
    guard let name = PythonReference(owning: PythonString.make("submit")),
      let future = PythonReference(
        owning: py_call_method2(pool, name.pointer, runCall, object)
      )
    else { return self.fail(context) }
    _ = consume future
  }

  /// Ends a call that could not even be begun.
  private func fail(_ context: SyncServicerContext) {
    if let error = PythonError.fetch() { self.bindings.log("Cannot run a call", error) }
    context.call.finish(Status(code: .internalError, details: "Cannot run the call"), isLast: true)
  }

  /// What starts Python threads; each is a callable that raises when it can't.
  struct Spawners {
    /// With `run_worker` for its body.
    let worker: PythonPointer
    /// With an asyncio loop.
    let loop: PythonPointer
    /// With `run_callbacks` for its body; called with its kind.
    let callbacks: PythonPointer
  }

  /// The body of the control thread.
  func runControl(_ spawners: Spawners) {
    self.control.run { job in
      switch job {
      case .spawnWorker:
        guard !Self.call(spawners.worker) else { return }
        self.pool.spawnFailed()
        self.logRefusedThread()
      case .spawnLoop:
        guard !Self.call(spawners.loop) else { return }
        if let error = PythonError.fetch() {
          self.bindings.log("Cannot start the asyncio thread", error)
        }
        self.bridge.failed()
      case .spawnCallbacks(let kind):
        guard !Self.call(spawners.callbacks, kind.rawValue) else { return }
        PyErr_Clear()
        self.thread(kind).spawnFailed { self.perform($0) }
      default:
        self.perform(job)
      }
    }
  }

  /// The body of a thread for what users have given to be called.
  func runCallbacks(_ kind: CallbackThread.Kind) {
    self.thread(kind).run { self.perform($0) }
  }

  private func thread(_ kind: CallbackThread.Kind) -> CallbackThread {
    switch kind {
    case .callbacks: self.callbacks
    case .renewals: self.renewals
    }
  }

  private static func call(_ callable: PythonPointer, _ argument: Int) -> Bool {
    guard let number = PythonReference(owning: PythonNumber.make(argument)),
      let result = py_call1(callable, number.pointer)
    else { return false }
    py_decref(result)
    return true
  }

  /// - Returns: false with an exception set.
  private static func call(_ callable: PythonPointer) -> Bool {
    guard let result = py_call0(callable) else { return false }
    py_decref(result)
    return true
  }

  /// Performs a job that any thread may perform which is nobody's call.
  private func perform(_ job: ControlThread.Job) {
    switch job {
    case .call(let callback):
      let callback = callback.take()
      self.surroundings?.perform(.enter)
      defer { self.surroundings?.perform(.leave) }
      if !Self.call(callback.pointer), let error = PythonError.fetch() {
        self.bindings.log("Exception calling callback!", error)
      }
      self.endIfLost()
    case .healthChanged:
      self.tellHealthListener()
    case .refreshCredentials(let index, let whenDone):
      self.refreshCredentials(index)
      whenDone()
    case .log(let sentence):
      self.bindings.log(sentence)
    case .giveBackMemory:
      Python.detached { ProcessMemory.giveBack() }
    case .spawnWorker, .spawnLoop, .spawnCallbacks, .stop:
      break
    }
  }

  private func logRefusedThread() {
    guard let error = PythonError.fetch(), self.refusedThreads.admit(at: .now()) else { return }
    let reason = error.text ?? ""
    self.bindings.log(
      "Cannot start a worker thread (\(reason)): there are \(self.pool.statistics.threads). Raise "
        + "the limit of threads (ulimit -u, systemd's TasksMax, a container's pids limit), or lower "
        + "the server option django_grpc.max_held_workers."
    )
  }

  // MARK: Statistics

  func makeStatistics() -> PythonPointer? {
    let pool = self.pool.statistics
    let values: [(String, Int)] = [
      ("calls_admitted", self.server.admission.admittedCalls),
      ("calls_active", self.server.admission.activeCalls),
      ("connections", self.server.connectionCount),
      ("calls_queued", pool.queued),
      ("workers", pool.threads),
      ("workers_awake", pool.awake),
      ("workers_idle", pool.idle),
      ("workers_held", pool.held),
      ("calls_on_loop", self.bridge.runningCount),
    ]
    guard let dict = PythonReference(owning: PyDict_New()) else { return nil }
    for (name, value) in values {
      guard let number = PythonReference(owning: PythonNumber.make(value)),
        PyDict_SetItemString(dict.pointer, name, number.pointer) == 0
      else { return nil }
    }
    return dict.take()
  }
}
