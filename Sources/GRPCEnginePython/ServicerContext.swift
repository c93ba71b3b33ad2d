internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// The native side of a `grpc.ServicerContext`: one call, as Python sees it.
///
/// Everything is touched with the GIL held. What only Python asks for (metadata, peer) stays in
/// Swift until it does.
class ServicerContext {
  let call: Call
  let server: PythonServer
  let bindings: Bindings
  /// What runs; found before the behaviour is called.
  var method: BoundMethod?
  /// The worker that runs the call; `nil` on threads that are not the engine's.
  let worker: WorkerThread?

  // What the servicer has set, kept as it gave it.
  var code: PythonHandle?
  var details: PythonHandle?
  var trailingMetadata: PythonHandle?
  var wireTrailingMetadata: Metadata?
  var isAborted = false
  var mayCompressNext = true
  private var invocationMetadataCache: PythonHandle?
  private var parker: Parker?

  init(call: Call, method: BoundMethod?, server: PythonServer, worker: WorkerThread?) {
    self.call = call
    self.method = method
    self.server = server
    self.bindings = server.bindings
    self.worker = worker
  }

  /// Where grpcio's two servers differ, whether this is as grpc.aio's.
  var followsAsyncio: Bool { self.server.followsAsyncio }

  // MARK: Status

  /// The status to end with, where `fallback` is what an outcome alone would say.
  func status(_ fallback: Status) -> Status {
    Status(
      code: self.code.map { self.statusCode($0.pointer) } ?? fallback.code,
      details: self.details.map { Self.text($0.pointer) } ?? fallback.details
    )
  }

  /// grpcio answers UNKNOWN for a code that is no `grpc.StatusCode`.
  private func statusCode(_ object: PythonPointer) -> StatusCode {
    PythonCollections.value(self.bindings.statusCodes.pointer, object)
      .flatMap { PythonNumber.int($0) }
      .flatMap { StatusCode(rawValue: $0) } ?? .unknown
  }

  private static func text(_ details: PythonPointer) -> String {
    guard let bytes = PythonBytes.contents(details) else { return "" }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// Whether the call has ended, and well.
  var hasSucceeded: Bool { self.call.code == .ok }

  /// Ends the call with what an outcome says, unless the servicer has said something else.
  func finish(_ fallback: Status, isLast: Bool = true) {
    self.server.endIfLost()
    self.call.finish(
      self.status(fallback),
      metadata: self.wireTrailingMetadata,
      isLast: isLast
    )
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
    if let error = PythonError.fetch() { self.bindings.log(message, error) }
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
        type == "coroutine"
        ? " An ordinary interceptor that calls methods itself can't serve async ones." : ""
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

  /// Whether a message is small enough to be sent; ends the call when it is not.
  func isSendable(_ message: UnsafeRawBufferPointer) -> Bool {
    // Without a limit there is still that of the prefix, which has 32 bits.
    let limit = min(self.server.configuration.maxSendMessageLength, Int(UInt32.max))
    guard message.count > limit else { return true }
    self.call.finish(
      Status(
        code: .resourceExhausted,
        details: "Sent message larger than max (\(message.count) vs. \(limit))"
      ),
      isLast: true
    )
    return false
  }

  func takeMayCompress() -> Bool {
    defer { self.mayCompressNext = true }
    return self.mayCompressNext
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

  // MARK: What Python asks for

  func invocationMetadata() -> PythonPointer? {
    if let cached = self.invocationMetadataCache {
      py_incref(cached.pointer)
      return cached.pointer
    }
    let metadata = Metadata(received: self.call.head.headers)
    guard
      let tuple = PythonReference(
        owning: PythonMetadata.make(metadata, self.bindings)
      )
    else { return nil }
    let handle = PythonHandle(tuple)
    self.invocationMetadataCache = handle
    py_incref(handle.pointer)
    return handle.pointer
  }

  /// Seconds until the deadline, 0 when it has passed; infinite without one, as grpcio's huge number
  /// there, so that code which compares and subtracts goes on.
  var timeRemaining: Double {
    guard let deadline = self.call.deadline else { return .infinity }
    if let asked = self.call.head.timeout, self.call.method.limits == nil {
      // What the peer asked for may be more than a deadline can tell.
      let (seconds, attoseconds) = asked.components
      let elapsed = Double((NIODeadline.now() - self.call.accepted).nanoseconds) / 1e9
      return max(0, Double(seconds) + Double(attoseconds) / 1e18 - elapsed)
    }
    return max(0, Double((deadline - NIODeadline.now()).nanoseconds) / 1e9)
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
