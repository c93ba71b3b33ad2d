internal import CPythonABI
internal import GRPCEngineServer
internal import Glibc
internal import PythonInterop

/// One Python thread that runs calls.
final class WorkerThread: @unchecked Sendable {
  // Safe to share: `current` and `isReported` are touched with the GIL held only, `parker` is safe
  // itself, and everything else is immutable.
  let parker = Parker()
  /// The call that it runs, and whether the watchdog has told of it. With the GIL held only.
  var current: Call?
  var isReported = false
  /// What the system calls the thread, and Python its `native_id`.
  let systemID: UInt64
  private let thread: pthread_t
  private let statFile: CInt

  /// Made on the thread itself.
  init() {
    self.thread = pthread_self()
    self.systemID = UInt64(PyThread_get_thread_native_id())
    self.statFile = open("/proc/thread-self/stat", O_RDONLY | O_CLOEXEC)
  }

  deinit {
    if self.statFile >= 0 { close(self.statFile) }
  }

  var isCurrent: Bool { pthread_equal(self.thread, pthread_self()) != 0 }

  /// Whether the thread sleeps in the kernel: for a worker in the middle of a call, that it waits
  /// for something else than the processor. `nil` when the system does not tell.
  var isAsleep: Bool? {
    guard self.statFile >= 0 else { return nil }
    // "PID (NAME) STATE …"; a thread's name has at most 15 bytes.
    return withUnsafeTemporaryAllocation(byteCount: 64, alignment: 1) { buffer in
      let count = pread(self.statFile, buffer.baseAddress, buffer.count, 0)
      guard count > 0, let end = buffer[..<count].lastIndex(of: UInt8(ascii: ")")),
        end + 2 < count
      else { return nil }
      let state = buffer[end + 2]
      return state == UInt8(ascii: "S") || state == UInt8(ascii: "D")
    }
  }
}
