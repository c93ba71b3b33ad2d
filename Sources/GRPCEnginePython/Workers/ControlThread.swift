internal import GRPCEngineLocks
internal import NIOCore
internal import PythonInterop

/// The Python thread for what is nobody's call, such as starting workers. It runs no code of users:
/// that is the `CallbackThread`'s.
///
/// grpcio has such a thread too, which polls its completion queue.
final class ControlThread: Sendable {
  enum Job: Sendable {
    case spawnWorker
    case spawnLoop
    case spawnCallbacks(CallbackThread.Kind)
    /// Calls a Python object without arguments, and drops it.
    case call(PythonTransfer)
    /// The server has become ready, or is no longer, or for another reason.
    case healthChanged
    /// Calls the Python object that renews credentials, by its index, and then what waits for it.
    case refreshCredentials(Int, whenDone: @Sendable () -> Void)
    /// Logs a sentence for the operator.
    case log(String)
    /// The server has been idle for a while.
    case giveBackMemory
    case stop
  }

  private let jobs = Locked(CircularBuffer<Job>())
  private let parker = Parker()

  /// May be called from any thread; never takes the GIL.
  func submit(_ job: Job) {
    self.jobs.withLock { $0.append(job) }
    self.parker.unpark()
  }

  /// The body of the thread: performs jobs until `.stop`. The GIL is held.
  func run(_ perform: (Job) -> Void) {
    while self.performPending(perform) {
      Python.detached { self.parker.park() }
    }
  }

  /// Performs what waits. The GIL is held.
  ///
  /// - Returns: false when that was `.stop`.
  @discardableResult
  func performPending(_ perform: (Job) -> Void) -> Bool {
    while let job = self.jobs.withLock({ $0.popFirst() }) {
      if case .stop = job { return false }
      perform(job)
    }
    return true
  }
}
