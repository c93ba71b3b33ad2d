internal import CPythonABI
internal import GRPCEngineServer
internal import NIOCore
internal import PythonInterop

extension PythonServer {
  static func server(_ object: PythonPointer?) -> PythonServer? {
    HeapType<PythonServer>.payload(object)
  }

  /// `_engine.make_server(configuration)`.
  static func make(_ values: PythonPointer) -> PythonPointer? {
    guard let bindings = Bindings.current, let types = EngineTypes.current,
      let (configuration, limits) = ServerConfiguration.make(values)
    else { return nil }
    return types.server.make(
      PythonServer(configuration: configuration, limits: limits, bindings: bindings)
    )
  }

  static func makeType() -> HeapType<PythonServer>? {
    HeapType.make(
      name: "django_grpc._engine.Server",
      documentation: "The engine's server; django_grpc.engine dresses it as a grpc.Server.",
      methods: Self.methodMethods + Self.lifeCycleMethods + Self.threadMethods + Self.loopMethods
        + Self.healthMethods
        + Self.observationMethods
    )
  }

  private static var methodMethods: [PyMethodDef] {
    [
      PythonMethod.keywords(
        "set_method_limits",
        "Limit what methods may cost; -1 stands for no limit."
      ) { object, arguments, keywords in
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "set_method_limits",
            "pattern",
            "concurrency",
            "queue",
            "timeout_ms",
            "max_timeout_ms",
            "max_message",
            "retry_after_ms"
          ),
          let server = PythonServer.server(object), let pattern = PythonServer.text(given, 0)
        else { return nil }
        var numbers: [Int?] = []
        for index in 1...6 {
          guard let number = PythonServer.number(given, index) else { return nil }
          numbers.append(number < 0 ? nil : number)
        }
        func time(_ milliseconds: Int?) -> TimeAmount? {
          milliseconds.map { TimeAmount(clampingSeconds: Double($0) / 1000) }
        }
        var limits = MethodLimits()
        limits.concurrency = numbers[0]
        limits.queue = numbers[1] ?? 0
        limits.timeout = time(numbers[2])
        limits.maximumTimeout = time(numbers[3])
        limits.maximumMessageLength = numbers[4]
        limits.retryAfter = time(numbers[5])
        server.setLimits(limits, for: pattern)
        return Python.newNone()
      },
      PythonMethod.keywords("add_method", "Register a method handler for a path.") {
        object,
        arguments,
        keywords in
        guard let given = PythonArguments(arguments, keywords, of: "add_method", "path", "handler"),
          let server = PythonServer.server(object), let path = PythonServer.text(given, 0),
          let handler = given[1], server.addMethod(path, handler)
        else { return nil }
        return Python.newNone()
      },
      PythonMethod.keywords(
        "add_resolved_method",
        "Register a path whose handler the resolver gives."
      ) { object, arguments, keywords in
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "add_resolved_method",
            "path",
            "request_streaming",
            "response_streaming"
          ),
          let server = PythonServer.server(object), let path = PythonServer.text(given, 0),
          let requests = given[1], let responses = given[2]
        else { return nil }
        let kind = CallKind(
          isRequestStreaming: Python.isTrue(requests),
          isResponseStreaming: Python.isTrue(responses)
        )
        server.addResolvedMethod(path, kind: kind)
        return Python.newNone()
      },
      PythonMethod.keywords(
        "set_resolver",
        "Set who gives the handlers that have to be asked for."
      ) { object, arguments, keywords in
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "set_resolver",
            "resolver",
            "fallback",
            "asynchronous"
          ),
          let server = PythonServer.server(object), let resolver = given[0],
          let fallback = given[1], let asynchronous = given[2]
        else { return nil }
        server.setResolver(
          resolver,
          isFallback: Python.isTrue(fallback),
          isAsync: Python.isTrue(asynchronous)
        )
        return Python.newNone()
      },
    ]
  }

  private static var lifeCycleMethods: [PyMethodDef] {
    [
      PythonMethod.keywords("add_port", "Bind an address; returns the port.") {
        object,
        arguments,
        keywords in
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "add_port",
            "address",
            "credentials",
            "refresh"
          ),
          let server = PythonServer.server(object), let address = PythonServer.text(given, 0),
          let credentials = given[1], let refresh = given[2]
        else { return nil }
        let box = EngineTypes.current?.credentials.checkedPayload(credentials)
        let refresher = Python.isNone(refresh) ? nil : PythonHandle(retaining: refresh)
        guard let port = server.addPort(address, box?.credentials, refresher: refresher) else {
          return nil
        }
        return PythonNumber.make(port)
      },
      PythonMethod.oneArgument(
        "add_operations_port",
        "Bind an address for figures over HTTP; returns the port."
      ) { object, address in
        guard let server = PythonServer.server(object), let address else { return nil }
        guard let address = PythonString.value(address) else {
          PythonError.raiseTypeError("the address must be a str")
          return nil
        }
        guard let port = server.addOperationsPort(address) else { return nil }
        return PythonNumber.make(port)
      },
      PythonMethod.keywords("adopt_connections", "Serve what another process accepts.") {
        object,
        arguments,
        keywords in
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "adopt_connections",
            "socket",
            "released",
            "credentials"
          ),
          let server = PythonServer.server(object), let socket = PythonServer.number(given, 0),
          let released = PythonServer.number(given, 1), let credentials = given[2]
        else { return nil }
        let box = EngineTypes.current?.credentials.checkedPayload(credentials)
        guard server.adoptConnections(from: socket, released: released, box?.credentials) else {
          return nil
        }
        return Python.newNone()
      },
      PythonMethod.noArguments("start", "Start the event loops and accept connections.") {
        object,
        _ in
        guard let server = PythonServer.server(object), server.start() else { return nil }
        return Python.newNone()
      },
      PythonMethod.oneArgument(
        "drain",
        "Refuse new calls; the callable is called when the last connection is gone."
      ) { object, whenStopped in
        guard let server = PythonServer.server(object), let whenStopped else { return nil }
        server.drain(whenStopped)
        return Python.newNone()
      },
      PythonMethod.oneArgument(
        "surround_calls",
        "Have something called before and after everything that runs for a call."
      ) { object, surroundings in
        guard let server = PythonServer.server(object), let surroundings,
          let surroundings = CallSurroundings(surroundings, bindings: server.bindings)
        else { return nil }
        server.surroundings = surroundings
        return Python.newNone()
      },
      PythonMethod.noArguments("cancel_all_calls", "End every call and connection.") {
        object,
        _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.cancelAllCalls()
        return Python.newNone()
      },
      PythonMethod.oneArgument(
        "cancel_all_calls_after",
        "End every call and connection that there still is when seconds have passed."
      ) {
        object,
        seconds in
        guard let server = PythonServer.server(object), let seconds else { return nil }
        guard let seconds = PythonNumber.double(seconds) else {
          PythonError.raiseTypeError("the grace must be a number of seconds")
          return nil
        }
        server.cancelAllCalls(after: seconds)
        return Python.newNone()
      },
      PythonMethod.noArguments("statistics", "Figures of calls, connections and workers.") {
        object,
        _ in PythonServer.server(object)?.makeStatistics()
      },
    ]
  }

  private static var threadMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments("run_worker", "The body of a worker thread.") { object, _ in
        guard let object, let server = PythonServer.server(object) else { return nil }
        server.runWorker(object)
        return Python.newNone()
      },
      PythonMethod.keywords("run_control", "The body of the control thread.") {
        object,
        arguments,
        keywords in
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "run_control",
            "spawn_worker",
            "spawn_loop",
            "spawn_callbacks"
          ),
          let server = PythonServer.server(object), let worker = given[0],
          let loop = given[1], let callbacks = given[2]
        else { return nil }
        server.runControl(.init(worker: worker, loop: loop, callbacks: callbacks))
        return Python.newNone()
      },
      PythonMethod.oneArgument("run_callbacks", "The body of a thread for users' callbacks.") {
        object,
        kind in
        guard let server = PythonServer.server(object), let kind,
          let number = PythonNumber.int(kind)
        else { return nil }
        guard let kind = CallbackThread.Kind(rawValue: number) else {
          PythonError.raiseValueError("\(number) is no kind of callback")
          return nil
        }
        server.runCallbacks(kind)
        return Python.newNone()
      },
      PythonMethod.noArguments("stop_threads", "End the worker and control threads.") {
        object,
        _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.stopThreads()
        return Python.newNone()
      },
      PythonMethod.noArguments(
        "lose",
        "End this process, forked by code of a call, when that comes to touch its call."
      ) { object, _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.isLost = true
        return Python.newNone()
      },
    ]
  }

  private static var observationMethods: [PyMethodDef] {
    [
      PythonMethod.keywords("enable_call_log", "Have calls that end recorded.") {
        object,
        arguments,
        keywords in
        guard
          let given = PythonArguments(arguments, keywords, of: "enable_call_log", "sample", "slow"),
          let server = PythonServer.server(object), let sample = given[0], let slow = given[1]
        else { return nil }
        guard let sample = PythonNumber.double(sample), let slow = TimeAmount(seconds: slow) else {
          PythonError.raiseTypeError("sample and slow must be numbers")
          return nil
        }
        var filter = CallLog.Filter()
        filter.sample = sample
        filter.slow = slow
        server.enableCallLog(filter)
        return Python.newNone()
      },
      PythonMethod.noArguments("next_calls", "Wait for calls that have ended.") { object, _ in
        guard let server = PythonServer.server(object) else { return nil }
        return server.callLog?.next() ?? Python.newNone()
      },
      PythonMethod.noArguments("close_call_log", "Record no more calls.") { object, _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.callLog?.log.close()
        return Python.newNone()
      },
      PythonMethod.oneArgument("overdue_calls", "The calls that run for so many seconds.") {
        object,
        seconds in
        guard let server = PythonServer.server(object), let seconds else { return nil }
        guard let limit = TimeAmount(seconds: seconds) else {
          PythonError.raiseTypeError("the seconds must be a number")
          return nil
        }
        return server.watchdog.overdue(limit, contexts: server.bridge.contexts)
      },
    ]
  }

  private static var loopMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments(
        "follow_grpc_aio",
        "Have ordinary methods find what they would find on grpc.aio's server."
      ) { object, _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.followsAsyncio = true
        return Python.newNone()
      },
      PythonMethod.keywords(
        "attach_loop",
        "Take calls for the loop whose create_task is given; False when none is wanted."
      ) { object, arguments, keywords in
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "attach_loop",
            "create_task",
            "descriptor"
          ),
          let server = PythonServer.server(object), let createTask = given[0],
          let descriptor = PythonServer.number(given, 1)
        else { return nil }
        guard let descriptor = CInt(exactly: descriptor), descriptor >= 0 else {
          PythonError.raiseValueError("a file descriptor must be 0 or more")
          return nil
        }
        let isWanted = server.bridge.attach(createTask: createTask, descriptor: descriptor)
        return Python.newBool(isWanted)
      },
      PythonMethod.noArguments(
        "lose_loop",
        "The loop that was asked for, or is attached, takes no calls; the next may."
      ) { object, _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.bridge.failed()
        server.bridge.lost()
        return Python.newNone()
      },
      PythonMethod.noArguments("detach_loop", "Take no more calls for any loop.") { object, _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.bridge.close()
        return Python.newNone()
      },
      PythonMethod.noArguments("tasks", "The tasks of the calls on the loop.") { object, _ in
        PythonServer.server(object)?.bridge.makeTasks()
      },
      PythonMethod.noArguments("run_events", "Start, wake and cancel calls on the loop.") {
        object,
        _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.bridge.run(server)
        return Python.newNone()
      },
    ]
  }

  private static func number(_ arguments: PythonArguments, _ index: Int) -> Int? {
    guard let object = arguments[index] else { return nil }
    if let number = PythonNumber.int(object) { return number }
    PythonError.raiseTypeError("argument \(index + 1) must be an int")
    return nil
  }

  static func text(_ arguments: PythonArguments, _ index: Int) -> String? {
    guard let object = arguments[index] else { return nil }
    if let text = PythonString.value(object) { return text }
    PythonError.raiseTypeError("argument \(index + 1) must be a str")
    return nil
  }
}

extension TimeAmount {
  /// Seconds as Python has them, of which a century is enough; `nil` when it is no number.
  fileprivate init?(seconds: PythonPointer) {
    guard let value = PythonNumber.double(seconds), !value.isNaN else { return nil }
    self.init(clampingSeconds: max(value, 0))
  }
}
