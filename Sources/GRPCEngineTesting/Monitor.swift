internal import Glibc

/// A value that threads share and wait for.
///
/// Tests wait for what must happen by its condition, never by a guess of how long it takes: the
/// bound only turns a hang into a failure.
package final class Monitor<Value: Sendable>: @unchecked Sendable {
  // Safe to share: `value` is touched under `mutex` only, and both outlive every user.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var value: Value

  package init(_ value: Value) {
    self.value = value
    pthread_mutex_init(self.mutex, nil)
    pthread_cond_init(self.condition, nil)
  }

  deinit {
    pthread_cond_destroy(self.condition)
    pthread_mutex_destroy(self.mutex)
    self.condition.deallocate()
    self.mutex.deallocate()
  }

  package var current: Value { self.update { $0 } }

  /// Changes the value and wakes whoever waits.
  package func update<Result>(_ change: (inout Value) throws -> Result) rethrows -> Result {
    pthread_mutex_lock(self.mutex)
    defer {
      pthread_cond_broadcast(self.condition)
      pthread_mutex_unlock(self.mutex)
    }
    return try change(&self.value)
  }

  /// Waits until `take` gives something, and returns that.
  ///
  /// - Parameter what: what is waited for, for the message of the failure.
  /// - Throws: `TestTimeout` after `seconds`.
  package func wait<Result>(
    _ what: String,
    seconds: Int = TestTimeout.seconds,
    _ take: (inout Value) throws -> Result?
  ) throws -> Result {
    var end = timespec()
    clock_gettime(CLOCK_REALTIME, &end)
    end.tv_sec += seconds
    pthread_mutex_lock(self.mutex)
    defer { pthread_mutex_unlock(self.mutex) }
    while true {
      if let result = try take(&self.value) {
        pthread_cond_broadcast(self.condition)
        return result
      }
      if pthread_cond_timedwait(self.condition, self.mutex, &end) == ETIMEDOUT {
        throw TestTimeout(what: what)
      }
    }
  }

  /// Waits until the value is as `isTrue` wants it.
  package func wait(
    _ what: String,
    seconds: Int = TestTimeout.seconds,
    until isTrue: (Value) -> Bool
  ) throws {
    _ = try self.wait(what, seconds: seconds) { isTrue($0) ? true : nil }
  }
}

/// Waits for something that tells nobody when it happens.
package func poll(_ what: String, until isTrue: () throws -> Bool) throws {
  for _ in 0..<(TestTimeout.seconds * 1000) {
    if try isTrue() { return }
    usleep(1000)
  }
  throw TestTimeout(what: what)
}

/// Something that had to happen did not.
package struct TestTimeout: Error, CustomStringConvertible {
  /// The bound of every wait: far above what a loaded machine needs, also under a sanitizer.
  package static let seconds = 20

  package let what: String
  package init(what: String) { self.what = what }
  package var description: String { "gave up waiting for \(self.what)" }
}
