internal import CPythonABI
internal import GRPCEngineServer
internal import Glibc
internal import PythonInterop
internal import Synchronization

/// One Python thread that runs calls.
final class WorkerThread: @unchecked Sendable {
  // Safe to share: `id` is set before anybody else knows of it, `current` and `isReported` are
  // touched with the GIL held only, `heldCall` under the pool's mutex only, `parker` and `hasEnded`
  // are safe themselves, and everything else is immutable.
  let parker = Parker()
  /// What the pool calls it; set once, when the thread enters the pool.
  var id = 0
  /// The call that it runs, and whether the watchdog has told of it. With the GIL held only.
  var current: Call?
  var isReported = false
  /// The call in the middle of which it waits for its peer. Under the pool's mutex only.
  var heldCall: Call?
  /// What the system calls the thread, and Python its `native_id`.
  let systemID: UInt64
  private let thread: pthread_t
  private let hasEnded = Atomic<Bool>(false)

  /// Made on the thread itself.
  init() {
    self.thread = pthread_self()
    self.systemID = UInt64(PyThread_get_thread_native_id())
    Self.nameThisThread()
  }

  /// Tells top(1) of it.
  private static func nameThisThread() {
    let file = open("/proc/thread-self/comm", O_WRONLY | O_CLOEXEC)
    guard file >= 0 else { return }
    _ = "grpc-worker".withCString { write(file, $0, strlen($0)) }  // at most 15 bytes
    close(file)
  }

  /// The thread ends now; for itself to say. The system may then give its identity to another one.
  func end() { self.hasEnded.store(true, ordering: .releasing) }

  var isCurrent: Bool {
    pthread_equal(self.thread, pthread_self()) != 0 && !self.hasEnded.load(ordering: .acquiring)
  }

  /// Whether the thread sleeps in the kernel: for a worker in the middle of a call, that it waits
  /// for something else than the processor. `nil` when the system does not tell, as when this
  /// process may open no more files. No descriptor is kept for
  /// it: there may be thousands of threads.
  var isAsleep: Bool? {
    let file = open("/proc/self/task/\(self.systemID)/stat", O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    // "PID (NAME) STATE …"; a thread's name has at most 15 bytes.
    return withUnsafeTemporaryAllocation(byteCount: 64, alignment: 1) { buffer in
      let count = read(file, buffer.baseAddress, buffer.count)
      guard count > 0, let end = buffer[..<count].lastIndex(of: UInt8(ascii: ")")),
        end + 2 < count
      else { return nil }
      let state = buffer[end + 2]
      return state == UInt8(ascii: "S") || state == UInt8(ascii: "D")
    }
  }
}
