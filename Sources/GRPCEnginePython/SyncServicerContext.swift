internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// The native side of a `grpc.ServicerContext`: one call, as code on a thread sees it.
///
/// What has to wait waits, without the GIL.
final class SyncServicerContext: ServicerContext {
  /// The worker that runs the call; `nil` on threads that are not the engine's.
  private let worker: WorkerThread?
  /// Whether `abort` has raised.
  var isAborted = false
  private var parker: Parker?

  init(call: Call, method: BoundMethod?, server: PythonServer, worker: WorkerThread?) {
    self.worker = worker
    super.init(call: call, method: method, server: server)
  }

  // MARK: Messages

  enum Request: ~Copyable {
    case message(PythonReference)
    case end
    /// The call has ended, or ends now with a status of its own.
    case terminated(Call.Termination?)
    /// The deserialiser raised, or the message was corrupt; the call has been ended.
    case invalid
  }

  /// Takes the next request, waiting for it without the GIL.
  func nextRequest() -> Request {
    self.server.endIfLost()
    while true {
      let next: Call.NextMessage
      do throws(MessageCodecError) {
        next = try self.call.nextMessage()
      } catch {
        self.call.finish(error.status)
        return .invalid
      }
      switch next {
      case .message(let payload):
        guard
          let bytes = PythonReference(
            owning: payload.withUnsafeReadableBytes { PythonBytes.make($0) }
          )
        else { return self.refuseRequest() }
        guard let deserializer = self.method?.requestDeserializer else { return .message(bytes) }
        guard
          let request = PythonReference(
            owning: py_call1(deserializer.pointer, bytes.pointer)
          ), !Python.isNone(request.pointer)
        else { return self.refuseRequest() }
        return .message(request)
      case .end:
        return .end
      case .terminated(let termination):
        return .terminated(termination)
      case .pending:
        self.wait { self.call.whenReadable($0) }
      }
    }
  }

  private func refuseRequest() -> Request {
    let message = "Exception deserializing request!"
    let line = "\(message) Servicer method [\(self.call.head.path)]"
    if let error = PythonError.fetch() {
      self.bindings.log(line, error)
    } else {
      self.bindings.log("\(line). The deserializer gave None.")
    }
    self.call.finish(Status(code: .internalError, details: message))
    return .invalid
  }

  /// A response as bytes; `nil`, with the call ended, when that fails.
  func serialize(_ response: PythonPointer) -> PythonReference? {
    if let message = EngineTypes.current?.serializedMessage.checkedPayload(response) {
      return PythonReference(retaining: message.bytes.pointer)
    }
    var bytes: PythonReference?
    if let serializer = self.method?.responseSerializer {
      bytes = PythonReference(owning: py_call1(serializer.pointer, response))
    } else {
      bytes = PythonReference(retaining: response)
    }
    guard let serialized = bytes.take(), py_is_bytes(serialized.pointer) != 0 else {
      let message = "Failed to serialize response!"
      // First, as whatever is asked of Python would lose it.
      let error = PythonError.fetch()
      // The serializer is not the project's: what it raises leads to no line of theirs.
      let type = Python.typeName(response)
      let hint =
        switch type {
        case "coroutine":
          " Is an 'await' or 'async def' missing? An ordinary interceptor that calls methods itself "
            + "can't serve async ones."
        case "NoneType": " Is a 'return' missing?"
        default: ""
        }
      let line =
        "\(message) Servicer method [\(self.call.head.path)] gave an object of type '\(type)'.\(hint)"
      if let error {
        self.bindings.log(line, error)
      } else {
        self.bindings.log("\(line) The serializer gave no bytes.")
      }
      self.finish(Status(code: .internalError, details: message))
      return nil
    }
    return serialized
  }

  /// Sends one response of a stream; waits, without the GIL, for a peer that lags.
  ///
  /// - Returns: whether the call goes on.
  func send(_ response: PythonPointer, mayWait: Bool) -> Bool {
    self.server.endIfLost()
    guard let bytes = self.serialize(response),
      let message = PythonBytes.contents(bytes.pointer), self.isSendable(message)
    else { return false }
    let result: Call.SendResult
    do throws(MessageCodecError) {
      result = try self.call.send(message, mayCompress: self.takeMayCompress())
    } catch {
      self.call.finish(error.status)
      return false
    }
    switch result {
    case .accepted: return true
    case .terminated: return false
    case .full:
      if mayWait { self.wait { self.call.whenWritable($0) } }
      return self.call.isActive
    }
  }

  /// Sends the only response and the status.
  func respond(_ response: PythonPointer) {
    self.server.endIfLost()
    guard let bytes = self.serialize(response),
      let message = PythonBytes.contents(bytes.pointer), self.isSendable(message)
    else { return }
    do throws(MessageCodecError) {
      try self.call.respond(
        message,
        mayCompress: self.takeMayCompress(),
        status: self.status(.ok),
        metadata: self.wireTrailingMetadata
      )
    } catch {
      self.call.finish(error.status, isLast: true)
    }
  }

  /// Waits for a callback without the GIL. On the call's worker, another one steps in meanwhile.
  private func wait(_ register: (@escaping @Sendable () -> Void) -> Void) {
    self.server.endIfLost()
    // One waits at a time on a worker; a thread of the servicer's own needs its own parker.
    let isOnWorker = self.worker?.isCurrent ?? false
    let parker = isOnWorker ? (self.parker ?? Parker()) : Parker()
    if isOnWorker { self.parker = parker }
    register { parker.unpark() }
    if parker.tryPark() { return }
    if isOnWorker, let worker = self.worker {
      self.server.pool.hold(worker, in: self.call, on: parker)
    } else {
      Python.detached { parker.park() }
    }
  }

  func addCallback(_ callback: PythonPointer) -> Bool {
    guard self.call.isActive else { return false }
    let transfer = PythonTransfer(retaining: callback)
    let callbacks = self.server.callbacks
    let isRegistered = self.call.onTermination { _ in callbacks.submit(.call(transfer)) }
    if !isRegistered { _ = transfer.take() }
    return isRegistered
  }
}
