// For `swift build --sanitize=thread -Xswiftc -DTHREAD_SANITIZER` only.
#if THREAD_SANITIZER
  internal import Glibc

  /// Stands in for Synchronization's type of this name, whose futex the thread sanitizer does not
  /// see: it would take all that is guarded by it for unguarded.
  final class Mutex<Value>: @unchecked Sendable {
    // Safe to share: `value` is touched under `mutex` only.
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private var value: Value

    init(_ value: consuming sending Value) {
      self.value = value
      pthread_mutex_init(self.mutex, nil)
    }

    deinit {
      pthread_mutex_destroy(self.mutex)
      self.mutex.deallocate()
    }

    func withLock<Result: ~Copyable, Failure: Error>(
      _ body: (inout sending Value) throws(Failure) -> sending Result
    ) throws(Failure) -> sending Result {
      pthread_mutex_lock(self.mutex)
      defer { pthread_mutex_unlock(self.mutex) }
      return try body(&self.value)
    }
  }
#endif
