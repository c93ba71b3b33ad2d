public import Glibc

/// A value that one thread at a time may touch.
///
/// Synchronization's `Mutex` would do, but in a process that was forked: it gives the kernel the
/// thread's id, which it remembers for good, and the thread that forked has another one in the child.
/// When it has to wait there, the process ends.
@usableFromInline
package final class Locked<Value>: @unchecked Sendable {
  // Safe to share: `value` is touched under `mutex` only, which is freed with this.
  @usableFromInline let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  @usableFromInline var value: Value

  @inlinable
  package init(_ value: consuming sending Value) {
    self.value = value
    pthread_mutex_init(self.mutex, nil)
  }

  deinit {
    pthread_mutex_destroy(self.mutex)
    self.mutex.deallocate()
  }

  @inlinable
  package func withLock<Result: ~Copyable, Failure: Error>(
    _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    pthread_mutex_lock(self.mutex)
    defer { pthread_mutex_unlock(self.mutex) }
    return try body(&self.value)
  }

  /// Does nothing, and returns `nil`, where another thread has it: for who must not wait.
  package func withLockIfAvailable<Result>(
    _ body: (inout sending Value) -> sending Result
  ) -> sending Result? {
    guard pthread_mutex_trylock(self.mutex) == 0 else { return nil }
    defer { pthread_mutex_unlock(self.mutex) }
    return body(&self.value)
  }

  /// Locks it until `unlock`, on the same thread: for what `pthread_atfork` calls.
  package func lock() { pthread_mutex_lock(self.mutex) }

  package func unlock() { pthread_mutex_unlock(self.mutex) }
}
