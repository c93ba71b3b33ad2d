internal import CPythonABI
internal import GRPCEngineServer
internal import PythonInterop

/// The coroutine functions of `django_grpc.engine.coroutines`, and what else asyncio needs.
final class CoroutineBindings: Sendable {
  /// `colour(behavior)`: 0 for an ordinary function, 1 for a coroutine function, 2 for an
  /// asynchronous generator function.
  let colour: PythonHandle
  // Each takes the context and the behaviour, and runs a call from its request to its status.
  let unary: PythonHandle
  let writer: PythonHandle
  let generator: PythonHandle
  /// Takes the context, and asks the resolver first.
  let resolved: PythonHandle
  /// `changes(before)`: the context variables that were set since that context was copied, or None.
  let changes: PythonHandle
  /// `carry(variables, function)`: the function, which sets them first.
  private let carry: PythonHandle
  /// `cancel(context, task)`.
  let cancel: PythonHandle
  /// `wake(future)`.
  let wake: PythonHandle
  /// `next_request(context)`: a coroutine that waits for the next item of an iteration.
  let nextRequest: PythonHandle
  /// The coroutine functions behind the context's own.
  let read: PythonHandle
  let write: PythonHandle
  let abort: PythonHandle
  let abortWithStatus: PythonHandle
  let sendInitialMetadata: PythonHandle
  /// `trailing_metadata(given)`: a tuple of it.
  let trailingMetadata: PythonHandle
  /// `grpc.aio.EOF`, and what stands for "nothing yet".
  let eof: PythonHandle
  let pending: PythonHandle
  let usageError: PythonHandle
  let internalError: PythonHandle

  /// - Returns: `nil` with an exception set when `values` lacks something.
  init?(_ values: PythonPointer) {
    func value(_ name: String) -> PythonHandle? {
      guard let object = PythonCollections.value(values, name) else {
        PythonError.raiseTypeError("configure() needs coroutines['\(name)']")
        return nil
      }
      return PythonHandle(retaining: object)
    }
    guard let colour = value("colour"), let unary = value("unary"), let writer = value("writer"),
      let generator = value("generator"), let resolved = value("resolved"),
      let changes = value("changes"), let carry = value("carry"),
      let cancel = value("cancel"), let wake = value("wake"),
      let nextRequest = value("next_request"), let read = value("read"),
      let write = value("write"), let abort = value("abort"),
      let abortWithStatus = value("abort_with_status"),
      let sendInitialMetadata = value("send_initial_metadata"),
      let trailingMetadata = value("trailing_metadata"),
      let eof = value("eof"),
      let pending = value("pending"), let usageError = value("usage_error"),
      let internalError = value("internal_error")
    else { return nil }
    self.colour = colour
    self.unary = unary
    self.writer = writer
    self.generator = generator
    self.resolved = resolved
    self.changes = changes
    self.carry = carry
    self.cancel = cancel
    self.wake = wake
    self.nextRequest = nextRequest
    self.read = read
    self.write = write
    self.abort = abort
    self.abortWithStatus = abortWithStatus
    self.sendInitialMetadata = sendInitialMetadata
    self.trailingMetadata = trailingMetadata
    self.eof = eof
    self.pending = pending
    self.usageError = usageError
    self.internalError = internalError
  }

  /// A function that begins with the context variables which came along with a method, if any did.
  ///
  /// - Returns: `nil` with an exception set.
  func carrying(_ variables: PythonHandle?, _ function: PythonHandle) -> PythonHandle? {
    guard let variables else { return function }
    guard
      let carrying = PythonReference(
        owning: py_call2(self.carry.pointer, variables.pointer, function.pointer)
      )
    else { return nil }
    return PythonHandle(carrying)
  }

  /// What runs a method on the loop.
  func function(of method: BoundMethod) -> PythonHandle {
    switch method.colour {
    case .asyncGenerator: return self.generator
    case .coroutine, .plain: return method.kind.isResponseStreaming ? self.writer : self.unary
    }
  }
}
