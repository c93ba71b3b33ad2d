internal import Glibc

/// What event loops take of the system. It is asked for beforehand, since SwiftNIO ends the process
/// where it can't have it.
package enum EventLoopResources {
  /// epoll(7), eventfd(2) and timerfd_create(2).
  private static let descriptorsOfALoop = 3

  /// Tries whether there are threads and descriptors for so many loops now.
  ///
  /// - Throws: `BoundSocket.Failure` with the errno of what was refused.
  package static func probe(loops: Int) throws(BoundSocket.Failure) {
    try Self.probeDescriptors(loops * Self.descriptorsOfALoop)
    try Self.probeThreads(loops)
  }

  private static func probeDescriptors(_ count: Int) throws(BoundSocket.Failure) {
    var opened: [CInt] = []
    defer { for descriptor in opened { close(descriptor) } }
    for _ in 0..<count {
      let descriptor = open("/dev/null", O_RDONLY | O_CLOEXEC)
      guard descriptor >= 0 else {
        throw BoundSocket.Failure(
          errno: Glibc.errno,
          message: "its event loops need \(count) file descriptors, and there are \(opened.count) "
            + "left. Raise the limit with 'ulimit -n', or LimitNOFILE= in a systemd unit"
        )
      }
      opened.append(descriptor)
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
