internal import CPythonABI
internal import GRPCEngineServer
internal import NIOCore
internal import PythonInterop

/// The server's health, as Python sees it. All of it is called with the GIL held, and gives it up
/// where watchers may have to be told.
extension PythonServer {
  /// Has the server not ready while a call has waited for Python for longer than `seconds`.
  func observeQueue(seconds: Double) {
    let (pool, bridge) = (self.pool, self.bridge)
    self.server.health.observeQueue(limit: TimeAmount(clampingSeconds: seconds)) {
      guard let oldest = [pool.oldestQueued, bridge.oldestWaiting].compactMap({ $0 }).min() else {
        return nil
      }
      return .now() - oldest
    }
  }

  func setHealthListener(_ listener: PythonPointer) {
    let isFirst = self.healthListener == nil
    self.healthListener = PythonHandle(retaining: listener)
    guard isFirst else { return }
    let control = self.control
    self.server.health.onChange { _ in control.submit(.healthChanged) }
  }

  /// Called on the control thread.
  func tellHealthListener() {
    guard let listener = self.healthListener else { return }
    if let result = py_call0(listener.pointer) {
      py_decref(result)
    } else if let error = PythonError.fetch() {
      self.bindings.log("Exception calling the listener of the health", error)
    }
  }

  /// `(cause, text)` or `None`.
  func makeHealthProblem() -> PythonPointer? {
    guard let problem = self.server.health.problem else { return Python.newNone() }
    let texts = [problem.cause.rawValue, problem.text]
    return PythonCollections.tuple(count: 2) { PythonString.make(texts[$0]) }
  }
}
