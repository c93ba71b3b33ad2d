#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Lets one thread sleep until another wakes it.
///
/// A wake-up that comes first is kept, so none is lost. Reusable: `park` takes the wake-up.
public final class Parker: @unchecked Sendable {
  // Safe to share: `isSignalled` is touched under `mutex` only, and both outlive every user.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var isSignalled = false

  public init() {
    pthread_mutex_init(self.mutex, nil)
    var attributes = pthread_condattr_t()
    pthread_condattr_init(&attributes)
    // Deadlines on the wall clock would move with it.
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(self.condition, &attributes)
    pthread_condattr_destroy(&attributes)
  }

  deinit {
    pthread_cond_destroy(self.condition)
    pthread_mutex_destroy(self.mutex)
    self.condition.deallocate()
    self.mutex.deallocate()
  }

  /// Sleeps until `unpark`. The caller must not hold the GIL.
  public func park() {
    pthread_mutex_lock(self.mutex)
    while !self.isSignalled { pthread_cond_wait(self.condition, self.mutex) }
    self.isSignalled = false
    pthread_mutex_unlock(self.mutex)
  }

  /// Sleeps until `unpark`, for some seconds at the most. The caller must not hold the GIL.
  ///
  /// - Returns: false when the time ran out.
  public func park(seconds: Int, milliseconds: Int = 0) -> Bool {
    var deadline = timespec()
    clock_gettime(CLOCK_MONOTONIC, &deadline)
    let nanoseconds = deadline.tv_nsec + milliseconds % 1000 * 1_000_000
    deadline.tv_sec += seconds + milliseconds / 1000 + nanoseconds / 1_000_000_000
    deadline.tv_nsec = nanoseconds % 1_000_000_000
    pthread_mutex_lock(self.mutex)
    defer { pthread_mutex_unlock(self.mutex) }
    while !self.isSignalled {
      if pthread_cond_timedwait(self.condition, self.mutex, &deadline) == ETIMEDOUT { break }
    }
    defer { self.isSignalled = false }
    return self.isSignalled
  }

  /// Takes a wake-up that is there already, without sleeping.
  ///
  /// - Returns: whether there was one.
  public func tryPark() -> Bool {
    pthread_mutex_lock(self.mutex)
    defer {
      self.isSignalled = false
      pthread_mutex_unlock(self.mutex)
    }
    return self.isSignalled
  }

  /// Wakes the sleeper, or keeps the wake-up for it. May be called from any thread.
  public func unpark() {
    pthread_mutex_lock(self.mutex)
    self.isSignalled = true
    pthread_mutex_unlock(self.mutex)
    pthread_cond_signal(self.condition)
  }
}
