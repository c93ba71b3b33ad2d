internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// `_engine.AsyncServicerContext`: the methods of `grpc.aio.ServicerContext`, with grpcio's
/// semantics, and below them what `django_grpc.engine.coroutines` is made of.
enum AsyncServicerContextType {
  static func make() -> HeapType<AsyncServicerContext>? {
    HeapType.make(
      name: "django_grpc._engine.AsyncServicerContext",
      documentation:
        "A call, as its async servicer sees it; a virtual subclass of grpc.aio.ServicerContext.",
      methods: ServicerContextMethods.metadata.filter { !Self.isReplaced($0) }
        + ServicerContextMethods.peer + ServicerContextMethods.outcome
        + ServicerContextMethods.observation
        + Self.coroutineMethods + Self.statusMethods
        + Self.stateMethods + Self.messageMethods + Self.lifeMethods
    )
  }

  private static func context(_ object: PythonPointer?) -> AsyncServicerContext? {
    HeapType<AsyncServicerContext>.payload(object)
  }

  private static func isReplaced(_ method: PyMethodDef) -> Bool {
    let name = String(cString: method.ml_name)
    return ["send_initial_metadata", "set_compression"].contains(name)
  }

  // MARK: Coroutines, written in Python

  private static func call(
    _ object: PythonPointer?,
    _ arguments: PythonPointer?,
    _ keywords: PythonPointer?,
    _ function: (CoroutineBindings) -> PythonHandle
  ) -> PythonPointer? {
    guard let object, let context = Self.context(object) else { return nil }
    let given = arguments.map { Int(PyTuple_Size($0)) } ?? 0
    guard
      let all = PythonReference(
        owning: PythonCollections.tuple(count: given + 1) { index in
          guard let item = index == 0 ? object : PyTuple_GetItem(arguments, Py_ssize_t(index - 1))
          else { return nil }
          py_incref(item)
          return item
        }
      )
    else { return nil }
    return PyObject_Call(function(context.bindings.coroutines).pointer, all.pointer, keywords)
  }

  private static var coroutineMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments("read", "Read one request; grpc.aio.EOF at their end.") {
        object,
        _ in
        guard let object, let context = Self.context(object) else { return nil }
        return py_call1(context.bindings.coroutines.read.pointer, object)
      },
      PythonMethod.keywords("write", "Send one response.") { object, arguments, keywords in
        Self.call(object, arguments, keywords) { $0.write }
      },
      PythonMethod.keywords("abort", "End the call with a status, by raising.") {
        object,
        arguments,
        keywords in Self.call(object, arguments, keywords) { $0.abort }
      },
      PythonMethod.keywords("abort_with_status", "End the call with a grpc.Status, by raising.") {
        object,
        arguments,
        keywords in
        Self.call(object, arguments, keywords) { $0.abortWithStatus }
      },
      PythonMethod.keywords(
        "send_initial_metadata",
        "Send initial metadata, before the first response."
      ) { object, arguments, keywords in
        Self.call(object, arguments, keywords) { $0.sendInitialMetadata }
      },
    ]
  }

  // MARK: Status

  private static var statusMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments("details", "The details that were set.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return PythonString.make(context.status(.ok).details)
      },
      PythonMethod.keywords(
        "set_compression",
        "Set how the responses are compressed."
      ) { object, arguments, keywords in
        guard let context = Self.context(object),
          let value = PythonArguments.single(
            arguments,
            keywords,
            of: "set_compression",
            "compression"
          )
        else { return nil }
        // As grpcio: the server's own.
        if Python.isNone(value) { return Python.newNone() }
        guard let algorithm = CompressionAlgorithm(python: value) else { return nil }
        guard !context.call.areHeadersDecided else {
          PythonError.raiseRuntimeError(
            "Compression setting must be specified before sending initial metadata"
          )
          return nil
        }
        context.call.setEncoding(algorithm)
        return Python.newNone()
      },
    ]
  }

  // MARK: State of the call

  private static var stateMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments(
        "time_remaining",
        "Seconds until the deadline; None without one."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        return context.call.deadline == nil
          ? Python.newNone() : PythonNumber.make(context.timeRemaining)
      },
      PythonMethod.noArguments("is_active", "Whether the call has not ended.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return Python.newBool(context.call.isActive)
      },
      PythonMethod.noArguments("done", "Whether the call has ended.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return Python.newBool(!context.call.isActive)
      },
      PythonMethod.noArguments("cancelled", "Whether the call was cancelled.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        switch context.call.termination {
        case nil, .answered: return Python.newBool(context.status(.ok).code == .cancelled)
        default: return Python.newBool(true)
        }
      },
      PythonMethod.keywords(
        "add_done_callback",
        "Have a callable called with the context when the call is done."
      ) { object, arguments, keywords in
        guard let context = Self.context(object),
          let callback = PythonArguments.single(
            arguments,
            keywords,
            of: "add_done_callback",
            "callback"
          )
        else { return nil }
        if context.doneCallbacks == nil {
          guard let list = PythonReference(owning: PyList_New(0)) else { return nil }
          context.doneCallbacks = PythonHandle(list)
        }
        guard let list = context.doneCallbacks, PyList_Append(list.pointer, callback) == 0 else {
          return nil
        }
        return Python.newNone()
      },
    ]
  }

  // MARK: Messages, without waiting

  private static func result(
    _ received: consuming AsyncServicerContext.Received,
    _ context: AsyncServicerContext
  ) -> PythonPointer? {
    switch consume received {
    case .message(let request): return request.take()
    case .end: return ServicerContextMethods.newReference(context.bindings.coroutines.eof)
    case .pending: return ServicerContextMethods.newReference(context.bindings.coroutines.pending)
    case .raised: return nil
    }
  }

  private static var messageMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments("_receive", "The next request, EOF, or PENDING.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return Self.result(context.receive(), context)
      },
      PythonMethod.noArguments(
        "_request",
        "What the behaviour gets: the request, or an iterator; or PENDING."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        if context.method?.kind.isRequestStreaming ?? false {
          return AsyncRequestIterator.make(context)
        }
        switch context.receive() {
        case .end:
          context.refuseWithoutRequest()
          return nil
        case let received: return Self.result(received, context)
        }
      },
      PythonMethod.oneArgument("_send", "Send a response; False when the next should wait.") {
        object,
        response in
        guard let context = Self.context(object), let response,
          let mayFollow = context.send(response)
        else { return nil }
        return Python.newBool(mayFollow)
      },
      PythonMethod.oneArgument("_answer", "Send the only response and the status.") {
        object,
        response in
        guard let context = Self.context(object), let response, context.answer(response) else {
          return nil
        }
        return Python.newNone()
      },
      PythonMethod.oneArgument("_set_reader", "Have a future set when there is a request.") {
        object,
        future in
        guard let context = Self.context(object), let future else { return nil }
        context.setReader(future)
        return Python.newNone()
      },
      PythonMethod.oneArgument("_set_writer", "Have a future set when a response is welcome.") {
        object,
        future in
        guard let context = Self.context(object), let future else { return nil }
        context.setWriter(future)
        return Python.newNone()
      },
      PythonMethod.oneArgument("_forget", "Drop a future that nobody waits for any more.") {
        object,
        future in
        guard let context = Self.context(object), let future else { return nil }
        context.forget(future)
        return Python.newNone()
      },
      PythonMethod.oneArgument("_send_initial_metadata", "Send initial metadata.") {
        object,
        value in
        guard let context = Self.context(object), let value, context.mayGoOn(),
          let metadata = PythonMetadata.parse(value)
        else { return nil }
        guard context.call.sendInitialMetadata(metadata) else {
          PythonError.raise(
            context.bindings.coroutines.usageError.pointer,
            "Send initial metadata failed: already sent"
          )
          return nil
        }
        return Python.newNone()
      },
    ]
  }

  // MARK: Life

  private static var lifeMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments("_begin", "The task has begun. May be called more than once.") {
        object,
        _ in
        guard let context = Self.context(object) else { return nil }
        context.begin()
        return Python.newNone()
      },
      PythonMethod.noArguments("_finish", "End the call with the status that was set.") {
        object,
        _ in
        guard let context = Self.context(object), context.mayEnd() else { return nil }
        context.finish(.ok, isLast: false)
        return Python.newNone()
      },
      PythonMethod.oneArgument("_fail", "End the call with UNKNOWN and the given details.") {
        object,
        details in
        guard let context = Self.context(object), let details else { return nil }
        context.fail(details)
        return Python.newNone()
      },
      PythonMethod.keywords("_abort", "End the call with a status, as what was raised says.") {
        object,
        arguments,
        keywords in
        guard let context = Self.context(object) else { return nil }
        guard
          let given = PythonArguments(
            arguments,
            keywords,
            of: "_abort",
            "error",
            "code",
            "details",
            "trailing_metadata"
          ),
          let error = given[0], let code = given[1], let details = given[2],
          let trailing = given[3],
          context.abort(error: error, code: code, details: details, trailing: trailing)
        else { return nil }
        return Python.newNone()
      },
      PythonMethod.noArguments("_abort_error", "What abort raised; None before.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return ServicerContextMethods.newReference(context.abortError)
      },
      PythonMethod.noArguments("_is_cancelled", "Whether the task was told of the end.") {
        object,
        _ in
        guard let context = Self.context(object) else { return nil }
        return Python.newBool(context.isCancelled)
      },
      PythonMethod.noArguments("_path", "/package.Service/Method") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return PythonString.make(context.call.head.path)
      },
      PythonMethod.noArguments("_resolver", "The server's resolver.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return ServicerContextMethods.newReference(context.server.resolver)
      },
      PythonMethod.oneArgument(
        "_carry",
        "Take the context variables that a method on a worker thread begins with."
      ) { object, variables in
        guard let context = Self.context(object), let variables else { return nil }
        context.variables = PythonHandle(retaining: variables)
        return Python.newNone()
      },
      PythonMethod.oneArgument(
        "_bind",
        "Take a method handler; what runs it, or None when the workers do now."
      ) { object, handler in
        guard let context = Self.context(object), let handler,
          let method = BoundMethod(handler, of: context.call.head.path)
        else { return nil }
        context.method = method
        guard method.colour != .plain else {
          context.handOverToWorkers()
          return Python.newNone()
        }
        let function = context.bindings.coroutines.function(of: method)
        return PythonCollections.tuple(count: 2) { index in
          ServicerContextMethods.newReference(index == 0 ? function : method.behavior)
        }
      },
      PythonMethod.noArguments(
        "_done",
        "The servicer has returned: the callbacks to call, or None."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        let callbacks = context.doneCallbacks
        context.returned()
        return ServicerContextMethods.newReference(callbacks)
      },
    ]
  }
}

extension AsyncServicerContext {
  /// A call of a single request that brought none.
  func refuseWithoutRequest() {
    let details = "\"\(self.call.head.path)\" requires exactly one request message."
    self.call.finish(Status(code: .unimplemented, details: details))
    self.raiseEnded()
  }

  /// Ends the call as grpcio does after an exception: a code that the servicer has set stays.
  func fail(_ details: PythonPointer) {
    let code = self.status(.ok).code
    self.call.finish(
      Status(code: code == .ok ? .unknown : code, details: PythonString.value(details) ?? ""),
      metadata: self.wireTrailingMetadata
    )
  }

  /// - Returns: false with an exception set.
  func abort(
    error: PythonPointer,
    code: PythonPointer,
    details: PythonPointer,
    trailing: PythonPointer
  ) -> Bool {
    guard self.abortError == nil else {
      PythonError.raise(self.bindings.coroutines.usageError.pointer, "Abort already called!")
      return false
    }
    guard let encoded = ServicerContextMethods.encoded(details),
      let metadata = PythonMetadata.parse(trailing)
    else { return false }
    if !metadata.entries.isEmpty {
      self.trailingMetadata = PythonHandle(retaining: trailing)
      self.wireTrailingMetadata = metadata
    }
    if PythonBytes.contents(encoded.pointer)?.isEmpty == false { self.details = encoded }
    self.code = PythonHandle(retaining: code)
    if self.status(Status(code: .unknown, details: "")).code == .ok {
      self.bindings.log("abort() called with StatusCode.OK; returning UNKNOWN")
      self.code = self.bindings.unknownCode
    }
    self.abortError = PythonHandle(retaining: error)
    self.finish(.ok, isLast: false)
    return true
  }
}
