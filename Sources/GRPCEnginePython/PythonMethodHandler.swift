internal import CPythonABI
internal import GRPCEngineServer
internal import PythonInterop

/// A `grpc.RpcMethodHandler`, looked through once.
///
/// Made and released with the GIL held.
final class BoundMethod: Sendable {
  let kind: CallKind
  let behavior: PythonHandle
  /// `nil` passes the bytes as they are, as grpcio does.
  let requestDeserializer: PythonHandle?
  let responseSerializer: PythonHandle?
  /// The behaviour takes a third argument, by which it sends answers later
  /// (`experimental_non_blocking`, as grpcio-health-checking's Watch).
  let isNonBlocking: Bool
  /// Where the behaviour runs.
  let colour: Colour
  /// The pool that the behaviour asks for (`experimental_thread_pool`).
  let threadPool: PythonHandle?
  /// Whether nothing but the behaviour runs Python code for a call, on a worker thread: it was
  /// registered, and what makes messages of bytes and bytes of messages is not written in Python.
  let isAlone: Bool

  /// What kind of function a behaviour is.
  enum Colour: Int, Sendable {
    case plain
    case coroutine
    case asyncGenerator
  }

  /// - Parameter path: Of the call, for the exception's text; whoever registers a method has it.
  /// - Returns: `nil` with an exception set when `handler` is no method handler.
  init?(_ handler: PythonPointer, of path: String? = nil, isRegistered: Bool = false) {
    guard let bindings = Bindings.current else { return nil }
    guard PyObject_HasAttrString(handler, "request_streaming") != 0 else {
      let type = Python.typeName(handler)
      let hint = type == "coroutine" ? "; was it awaited?" : ""
      PythonError.raiseTypeError(
        "\(path.map { "\($0): " } ?? "")a method handler is needed where an interceptor or a servicer gave an object of type '\(type)'\(hint)"
      )
      return nil
    }
    guard
      let requestStreaming = PythonReference(
        owning: Python.attribute(handler, "request_streaming")
      ),
      let responseStreaming = PythonReference(
        owning: Python.attribute(handler, "response_streaming")
      )
    else { return nil }
    let name: String
    switch (Python.isTrue(requestStreaming.pointer), Python.isTrue(responseStreaming.pointer)) {
    case (false, false): (self.kind, name) = (.unaryUnary, "unary_unary")
    case (false, true): (self.kind, name) = (.unaryStream, "unary_stream")
    case (true, false): (self.kind, name) = (.streamUnary, "stream_unary")
    case (true, true): (self.kind, name) = (.streamStream, "stream_stream")
    }
    guard let behavior = PythonReference(owning: Python.attribute(handler, name)) else {
      return nil
    }
    guard py_is_callable(behavior.pointer) != 0 else {
      PythonError.raiseTypeError("the method handler's '\(name)' is not callable")
      return nil
    }
    self.behavior = PythonHandle(behavior)
    self.requestDeserializer = Python.optionalAttribute(handler, "request_deserializer")
    self.responseSerializer = Python.optionalAttribute(handler, "response_serializer")
    let nonBlocking = Python.optionalAttribute(
      self.behavior.pointer,
      "experimental_non_blocking"
    )
    guard
      let colour = PythonReference(
        owning: py_call1(bindings.coroutines.colour.pointer, self.behavior.pointer)
      )
    else { return nil }
    self.colour = PythonNumber.int(colour.pointer).flatMap { Colour(rawValue: $0) } ?? .plain
    // Nothing else of the two: a mock has every attribute.
    self.isNonBlocking = nonBlocking?.pointer == py_true()
    let pool = Python.optionalAttribute(self.behavior.pointer, "experimental_thread_pool")
    self.threadPool = pool.flatMap { pool in
      switch PyObject_IsInstance(pool.pointer, bindings.threadPool.pointer) {
      case 1: return pool
      case 0: return nil
      default:  // its `__class__` raises
        PyErr_Clear()
        return nil
      }
    }
    self.isAlone =
      isRegistered && self.threadPool == nil && Self.isNative(self.requestDeserializer)
      && Self.isNative(self.responseSerializer)
  }

  /// Whether a function is written in C, as protobuf's are.
  private static func isNative(_ function: PythonHandle?) -> Bool {
    guard let function else { return true }
    return ["builtin_function_or_method", "method_descriptor"]
      .contains(Python.typeName(function.pointer))
  }
}

/// A Python servicer's method, as the engine sees it.
final class PythonMethodHandler: MethodHandler {
  let startsOnFirstMessage: Bool
  /// Whether there are many requests or responses.
  let isStream: Bool
  /// What runs, unless it has to be asked for call by call; see `BoundMethodCell`.
  let method: BoundMethodCell
  private let destination: Destination

  enum Destination: Sendable {
    case workers(WorkerPool)
    case asyncio(AsyncioBridge)
  }

  init(
    method: BoundMethodCell,
    startsOnFirstMessage: Bool,
    isStream: Bool,
    destination: Destination
  ) {
    self.method = method
    self.startsOnFirstMessage = startsOnFirstMessage
    self.isStream = isStream
    self.destination = destination
  }

  func start(_ call: Call) {
    let job = PythonJob(call: call, handler: self)
    switch self.destination {
    case .workers(let pool): pool.submit(job)
    case .asyncio(let bridge): bridge.post(.start(job))
    }
  }

  func abandoned(_ call: Call) {
    // Its place is somebody else's, and what it holds is free, however long the queue stands.
    call.handlerReturned()
    switch self.destination {
    case .workers(let pool): pool.abandoned()
    case .asyncio(let bridge): bridge.abandoned()
    }
  }
}

/// Keeps a bound method for handlers that any thread may release.
///
/// The engine drops its handlers on an event loop, where no Python object may die; so the server's
/// Python side empties the cells first, with the GIL held.
final class BoundMethodCell: @unchecked Sendable {
  // Safe to share: read, written and emptied with the GIL held only.
  private(set) var value: BoundMethod?
  /// What interceptors have set of context variables, for a method that runs on another side than
  /// they: `carry` of `CoroutineBindings` takes it. `nil` when there is nothing.
  private(set) var variables: PythonHandle?

  init(_ value: BoundMethod?, variables: PythonHandle? = nil) {
    self.value = value
    self.variables = variables
  }

  func empty() {
    self.value = nil
    self.variables = nil
  }
}
