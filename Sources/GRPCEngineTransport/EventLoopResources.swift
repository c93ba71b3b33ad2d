internal import CGRPCEngineSockets
internal import Dispatch
internal import GRPCEngineLocks
internal import Glibc
package import NIOPosix

/// What event loops take of the system. It is asked for beforehand, since SwiftNIO ends the process
/// where it can't have it; and so does libdispatch, by which SwiftNIO ends event loops.
package enum EventLoopResources {
  /// epoll(7), eventfd(2) and timerfd_create(2).
  private static let descriptorsOfALoop = 3

  /// Held from the asking to the having: servers of one process may start at the same time. Whether
  /// libdispatch has what it needs: the same three descriptors, once in a process.
  private static let dispatchIsReady = Locked(false)

  /// Opens a descriptor for a moment, unless event loops are about to be made: that moment could be
  /// the one in which they open what was found to be free.
  ///
  /// - Returns: what `body` returns; `nil` where it was not called.
  static func unlessAsking<Result>(_ body: () -> Result) -> Result? {
    Self.dispatchIsReady.withLockIfAvailable { _ in body() }
  }

  /// No process is forked while the lock is held, as nobody would ever give it back in the child.
  private static let guardAgainstForks: Void = {
    pthread_atfork(
      { EventLoopResources.dispatchIsReady.lock() },
      { EventLoopResources.dispatchIsReady.unlock() },
      { EventLoopResources.dispatchIsReady.unlock() }
    )
  }()

  /// Makes groups of event loops, all of them or none.
  ///
  /// - Parameter sizes: the threads of each, 1 or more.
  /// - Throws: `BoundSocket.Failure` with the errno of what was refused.
  package static func makeGroups(
    _ sizes: [Int]
  ) throws(BoundSocket.Failure) -> [MultiThreadedEventLoopGroup] {
    _ = Self.guardAgainstForks
    return try Self.dispatchIsReady.withLock { dispatchIsReady throws(BoundSocket.Failure) in
      let loops = sizes.reduce(0, +)
      try Self.probeDescriptors(loops + (dispatchIsReady ? 0 : 1))
      // Its manager and one that does what is to be done.
      try Self.probeThreads(loops + (dispatchIsReady ? 0 : 2))
      if !dispatchIsReady {
        Self.readyDispatch()
        dispatchIsReady = true
      }
      return sizes.map { MultiThreadedEventLoopGroup(numberOfThreads: $0) }
    }
  }

  /// Has libdispatch open now what it would open as the first event loop ends: there may be nothing
  /// left to open by then. A child that is forked has it from its parent.
  ///
  /// A timer that is due before libdispatch has come to look at it needs nothing of the system. One
  /// that repeats is set anew each time.
  private static func readyDispatch() {
    let interval = DispatchTimeInterval.milliseconds(5)
    let hasFired = DispatchSemaphore(value: 0)
    let timer = DispatchSource.makeTimerSource()
    timer.setEventHandler { hasFired.signal() }
    timer.schedule(deadline: .now() + interval, repeating: interval)
    timer.resume()
    for _ in 0..<3 { _ = hasFired.wait(timeout: .now() + 5) }
    timer.cancel()
  }

  /// Opens what so many loops will, for a moment.
  private static func probeDescriptors(_ loops: Int) throws(BoundSocket.Failure) {
    var opened: [CInt] = []
    defer { for descriptor in opened { close(descriptor) } }
    for _ in 0..<loops {
      let kinds = [
        grpc_engine_open_epoll(), grpc_engine_open_descriptor(), grpc_engine_open_timer(),
      ]
      let code = errno
      opened += kinds.filter { $0 >= 0 }
      guard kinds.allSatisfy({ $0 >= 0 }) else {
        throw BoundSocket.Failure(
          errno: code,
          message: "its event loops need \(loops * Self.descriptorsOfALoop) file descriptors, and "
            + "there are \(opened.count) left. Raise the limit with 'ulimit -n', or LimitNOFILE= in "
            + "a systemd unit"
        )
      }
      for descriptor in kinds.dropFirst() {
        guard grpc_engine_watch(kinds[0], descriptor) == 0 else {
          throw BoundSocket.Failure(
            errno: errno,
            message: "its event loops can't watch file descriptors: "
              + "\(String(cString: strerror(errno))) (fs.epoll.max_user_watches, memory)"
          )
        }
      }
    }
  }

  private static func probeThreads(_ count: Int) throws(BoundSocket.Failure) {
    // Freed below, when every thread that waits for it has been joined.
    let gate = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)
    sem_init(gate, 0, 0)
    var threads: [pthread_t] = []
    defer {
      for _ in threads { sem_post(gate) }
      for thread in threads { pthread_join(thread, nil) }
      sem_destroy(gate)
      gate.deallocate()
    }
    for _ in 0..<count {
      var thread = pthread_t()
      let code = pthread_create(
        &thread,
        nil,
        { argument in
          guard let argument else { return nil }
          while sem_wait(argument.assumingMemoryBound(to: sem_t.self)) != 0, errno == EINTR {}
          return nil
        },
        gate
      )
      guard code == 0 else {
        throw BoundSocket.Failure(
          errno: code,
          message:
            "its event loops need \(count) threads, and there are \(threads.count). Raise the "
            + "limit (ulimit -u, systemd's TasksMax, a container's pids limit)"
        )
      }
      threads.append(thread)
    }
  }
}
