internal import CPythonABI
internal import GRPCEngineLocks
internal import PythonInterop

/// The Python objects that the engine needs: grpcio's types, and what `django_grpc.engine` gives.
///
/// Set once by `_engine.configure`, before the first server is made, and kept for the
/// interpreter's life.
final class Bindings: Sendable {
  /// `{grpc.StatusCode: int}`.
  let statusCodes: PythonHandle
  /// `grpc.StatusCode.UNKNOWN`.
  let unknownCode: PythonHandle
  let rpcError: PythonHandle
  let abortError: PythonHandle
  /// Makes one item of metadata from key and value.
  let metadatum: PythonHandle
  let copyContext: PythonHandle
  /// `log_exception(message, exception)`.
  let logException: PythonHandle
  /// `log_error(message)`.
  let logError: PythonHandle
  /// `end_child()`.
  let endChild: PythonHandle
  /// `concurrent.futures.ThreadPoolExecutor`.
  let threadPool: PythonHandle
  let coroutines: CoroutineBindings
  let run: PythonHandle
  let close: PythonHandle
  /// `_engine._run_call`.
  let runCall: PythonHandle

  private static let shared = Locked<Bindings?>(nil)

  /// - Returns: `nil` with an exception set when `values` lacks something.
  init?(_ values: PythonPointer, module: PythonPointer) {
    func value(_ name: String) -> PythonHandle? {
      guard let object = PythonCollections.value(values, name) else {
        PythonError.raiseTypeError("configure() needs '\(name)'")
        return nil
      }
      return PythonHandle(retaining: object)
    }
    guard let statusCodes = value("status_codes"), let unknownCode = value("unknown_code"),
      let rpcError = value("rpc_error"),
      let abortError = value("abort_error"), let metadatum = value("metadatum"),
      let copyContext = value("copy_context"), let logException = value("log_exception"),
      let logError = value("log_error"), let endChild = value("end_child"),
      let threadPool = value("thread_pool"),
      let functions = value("coroutines"),
      let coroutines = CoroutineBindings(functions.pointer),
      let run = PythonString.intern("run"),
      let close = PythonString.intern("close"),
      let runCall = PythonReference(owning: Python.attribute(module, "_run_call"))
    else { return nil }
    self.statusCodes = statusCodes
    self.unknownCode = unknownCode
    self.rpcError = rpcError
    self.abortError = abortError
    self.metadatum = metadatum
    self.copyContext = copyContext
    self.logException = logException
    self.logError = logError
    self.endChild = endChild
    self.threadPool = threadPool
    self.coroutines = coroutines
    self.run = run
    self.close = close
    self.runCall = PythonHandle(runCall)
  }

  static func configure(_ bindings: Bindings) { Self.shared.withLock { $0 = bindings } }

  /// `nil` with RuntimeError set before `configure`.
  static var current: Bindings? {
    if let bindings = Self.shared.withLock({ $0 }) { return bindings }
    PythonError.raiseRuntimeError("_engine.configure() has not been called")
    return nil
  }

  // MARK: Logging

  /// Logs an exception with its traceback. Never raises.
  func log(_ message: String, _ error: borrowing PythonError) {
    guard let text = PythonReference(owning: PythonString.make(message)) else {
      return PyErr_Clear()
    }
    let result = py_call2(self.logException.pointer, text.pointer, error.value.pointer)
    if let result { py_decref(result) } else { PyErr_Clear() }
  }

  func log(_ message: String) {
    guard let text = PythonReference(owning: PythonString.make(message)) else {
      return PyErr_Clear()
    }
    let result = py_call1(self.logError.pointer, text.pointer)
    if let result { py_decref(result) } else { PyErr_Clear() }
  }
}
