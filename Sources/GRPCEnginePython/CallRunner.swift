internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import PythonInterop

/// Runs a servicer's method for one call, on the thread that it is called on, with grpcio's
/// semantics of exceptions, `abort` and statuses. The GIL is held.
struct CallRunner {
  let context: SyncServicerContext
  /// The Python object of `context`.
  let object: PythonPointer

  func run() {
    guard let method = self.resolve() else { return }
    defer { self.context.call.handlerReturned() }
    switch method.kind {
    case .unaryUnary, .unaryStream:
      switch self.context.nextRequest() {
      case .message(let request):
        self.runBehavior(method, request.pointer)
      case .end:
        let details = "\"\(self.context.call.head.path)\" requires exactly one request message."
        self.context.call.finish(Status(code: .unimplemented, details: details), isLast: true)
      case .terminated:
        break
      case .invalid:
        break
      }
    case .streamUnary, .streamStream:
      guard let requests = PythonReference(owning: RequestIterator.make(self.context)) else {
        return self.failed("Exception calling application")
      }
      self.runBehavior(method, requests.pointer)
    }
  }

  /// Finds the method handler: the one that was registered, or what the server's interceptors and
  /// generic handlers say.
  private func resolve() -> BoundMethod? {
    if let method = self.context.method { return method }
    let call = self.context.call
    let copyContext = self.context.bindings.copyContext
    guard let before = PythonReference(owning: py_call0(copyContext.pointer)),
      let path = PythonReference(owning: PythonString.make(call.head.path)),
      let metadata = PythonReference(owning: self.context.invocationMetadata()),
      let resolver = self.context.server.resolver,
      let handler = PythonReference(
        owning: py_call2(resolver.pointer, path.pointer, metadata.pointer)
      )
    else {
      self.logFailure("Exception servicing handler")
      call.finish(Status(code: .unknown, details: "Error in service handler!"), isLast: true)
      return nil
    }
    if Python.isNone(handler.pointer) {
      call.finish(Status(code: .unimplemented, details: "Method not found!"), isLast: true)
      return nil
    }
    guard let method = BoundMethod(handler.pointer, of: call.head.path) else {
      self.logFailure("Exception servicing handler")
      call.finish(Status(code: .unknown, details: "Error in service handler!"), isLast: true)
      return nil
    }
    if method.colour != .plain {
      guard
        let variables = PythonReference(
          owning: py_call1(self.context.bindings.coroutines.changes.pointer, before.pointer)
        )
      else {
        self.logFailure("Exception servicing handler")
        call.finish(Status(code: .unknown, details: "Error in service handler!"), isLast: true)
        return nil
      }
      self.handOver(method, variables: variables.pointer)
      return nil
    }
    self.context.method = method
    return method
  }

  /// Gives the call to the asyncio loop, as its handler turned out to be a coroutine function.
  ///
  /// - Parameter variables: what the interceptors have set, or None.
  private func handOver(_ method: BoundMethod, variables: PythonPointer) {
    let bridge = self.context.server.bridge
    let carried = Python.isNone(variables) ? nil : PythonHandle(retaining: variables)
    let handler = PythonMethodHandler(
      method: BoundMethodCell(method, variables: carried),
      startsOnFirstMessage: false,
      isStream: method.kind != .unaryUnary,
      destination: .asyncio(bridge)
    )
    bridge.post(.handOver(PythonJob(call: self.context.call, handler: handler)))
  }

  private func runBehavior(_ method: BoundMethod, _ request: PythonPointer) {
    if method.isNonBlocking, method.kind.isResponseStreaming {
      guard let send = PythonReference(owning: ResponseSender.make(self.context)),
        let result = PythonReference(
          owning: py_call3(method.behavior.pointer, request, self.object, send.pointer)
        )
      else { return self.failed("Exception calling application") }
      _ = consume result
      return
    }
    guard
      let result = PythonReference(
        owning: py_call2(method.behavior.pointer, request, self.object)
      )
    else { return self.failed("Exception calling application") }
    if method.kind.isResponseStreaming {
      self.sendResponses(result.pointer)
    } else {
      self.context.respond(result.pointer)
    }
  }

  private func sendResponses(_ responses: PythonPointer) {
    // grpcio takes an iterator only; a list, say, is a mistake.
    guard PyIter_Check(responses) != 0 else {
      PythonError.raiseTypeError("'\(Python.typeName(responses))' object is not an iterator")
      // There is no line of the project's to trace it to.
      return self.failed(
        "Exception iterating responses",
        logged:
          " Servicer method [\(self.context.call.head.path)] has to yield, or return an iterator."
      )
    }
    while let response = PythonReference(owning: PyIter_Next(responses)) {
      // grpcio ends the stream where a servicer yields None.
      if Python.isNone(response.pointer) { break }
      guard self.context.send(response.pointer, mayWait: true) else {
        return self.close(responses)
      }
    }
    if PyErr_Occurred() != nil { return self.failed("Exception iterating responses") }
    self.close(responses)
    self.context.finish(.ok)
  }

  /// Closes a generator here, on the thread that it ran on: when its peer has gone, its `finally`
  /// blocks and its transaction belong to this thread.
  private func close(_ iterator: PythonPointer) {
    guard PyObject_HasAttrString(iterator, "close") != 0 else { return }
    if let result = py_call_method0(iterator, self.context.bindings.close.pointer) {
      py_decref(result)
    } else {
      self.logFailure("Exception closing responses")
    }
  }

  /// Ends the call after the behaviour raised.
  ///
  /// - Parameter hint: what to add for the log.
  private func failed(_ what: String, logged hint: String = "") {
    guard let error = PythonError.fetch() else { return }
    let call = self.context.call
    if self.context.isAborted {
      self.context.finish(Status(code: .unknown, details: "RPC Aborted"))
      return
    }
    // The engine's own RpcError tells the servicer that its peer has gone: no news to log.
    if let termination = call.termination, termination != .answered,
      error.matches(self.context.bindings.rpcError.pointer)
    {
      return
    }
    let details =
      error.text.map { "\(what): \($0)" } ?? "Calling application raised unprintable Exception!"
    self.context.bindings.log(hint.isEmpty ? details : "\(details).\(hint)", error)
    self.context.finish(Status(code: .unknown, details: details))
  }

  private func logFailure(_ what: String) {
    guard let error = PythonError.fetch() else { return }
    self.context.bindings.log(error.text.map { "\(what): \($0)" } ?? what, error)
  }
}
