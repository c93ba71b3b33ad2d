internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// One call, as Python sees it: what the contexts of both kinds have.
///
/// Everything is touched with the GIL held. What only Python asks for (metadata, peer) stays in
/// Swift until it does.
class ServicerContext {
  let call: Call
  let server: PythonServer
  let bindings: Bindings
  /// What runs; found before the behaviour is called.
  var method: BoundMethod?

  // What the servicer has set, kept as it gave it.
  var code: PythonHandle?
  var details: PythonHandle?
  var trailingMetadata: PythonHandle?
  var wireTrailingMetadata: Metadata?
  var mayCompressNext = true
  private var invocationMetadataCache: PythonHandle?

  init(call: Call, method: BoundMethod?, server: PythonServer) {
    self.call = call
    self.method = method
    self.server = server
    self.bindings = server.bindings
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

  /// grpcio answers UNKNOWN for a code that is no `grpc.StatusCode`; grpc.aio takes its number, too.
  private func statusCode(_ object: PythonPointer) -> StatusCode {
    let known = PythonCollections.value(self.bindings.statusCodes.pointer, object)
    // Nothing else that has a number: to ask for it may run code, amid the end of the call.
    let isNumber = self.followsAsyncio && py_is_int(object) != 0
    return (known ?? (isNumber ? object : nil))
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
}
