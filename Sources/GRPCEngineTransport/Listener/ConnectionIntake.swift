internal import CGRPCEngineSockets
internal import GRPCEngineLocks
internal import Glibc
package import NIOCore
internal import NIOPosix

/// Takes connections over that another process has accepted: the other source beside `Listener`.
///
/// They come one by one over a socket that keeps messages apart (`SOCK_SEQPACKET`), each a message
/// with one descriptor (`SCM_RIGHTS`, unix(7)). The other process ends it by closing its side, or
/// half of it: what it has sent before is still taken in, also while the server drains.
///
/// A thread of its own waits for them, since event loops read no descriptors.
package final class ConnectionIntake: Sendable {
  /// What connections come from.
  package struct Source: Sendable {
    /// A Unix socket of type `SOCK_SEQPACKET`.
    let socket: CInt
    /// An eventfd(2) that is raised by one for each connection that has gone; `nil` when nobody
    /// wants to know.
    let released: CInt?
    let credentials: ServerCredentials?

    /// The descriptors are the source's from here on.
    package init(socket: CInt, released: CInt?, credentials: ServerCredentials?) {
      self.socket = socket
      self.released = released
      self.credentials = credentials
      for descriptor in [socket, released].compactMap(\.self) {
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
      }
    }

    /// Closes a source that no intake took.
    package func close() {
      Glibc.close(self.socket)
      if let released { Glibc.close(released) }
    }
  }

  /// Milliseconds after which it is looked again whether there are descriptors.
  private static let pause: CInt = 50

  private let credentials: ServerCredentials?
  private let configuration: TransportConfiguration
  private let acceptor: any StreamAcceptor
  private let registry: ConnectionRegistry
  private let group: any EventLoopGroup
  private let descriptors: DescriptorWatch
  private let released: ReleaseCounter
  private let trial: WatchTrial
  /// The socket, until its end.
  private let socket: Locked<CInt?>

  private init(
    source: Source,
    trial: WatchTrial,
    configuration: TransportConfiguration,
    acceptor: any StreamAcceptor,
    registry: ConnectionRegistry,
    group: any EventLoopGroup,
    descriptors: DescriptorWatch
  ) {
    self.trial = trial
    self.descriptors = descriptors
    self.socket = Locked(source.socket)
    self.released = ReleaseCounter(source.released)
    self.credentials = source.credentials
    self.configuration = configuration
    self.acceptor = acceptor
    self.registry = registry
    self.group = group
  }

  /// Begins to take connections in, on a new thread.
  ///
  /// - Parameters:
  ///   - source: closed with the last of its connections.
  ///   - group: the event loops over which connections are spread.
  ///   - descriptors: whether there are file descriptors for more; shared with the server's
  ///     listeners.
  /// - Throws: `BoundSocket.Failure` when there is no thread or descriptor to be had; the source is
  ///   closed then.
  package static func start(
    _ source: Source,
    configuration: TransportConfiguration,
    acceptor: any StreamAcceptor,
    registry: ConnectionRegistry,
    group: any EventLoopGroup,
    descriptors: DescriptorWatch = DescriptorWatch()
  ) throws(BoundSocket.Failure) -> ConnectionIntake {
    let trial: WatchTrial
    do throws(BoundSocket.Failure) {
      trial = try WatchTrial()
    } catch {
      source.close()
      throw error
    }
    let intake = ConnectionIntake(
      source: source,
      trial: trial,
      configuration: configuration,
      acceptor: acceptor,
      registry: registry,
      group: group,
      descriptors: descriptors
    )
    registry.arrivalBegan()
    let retained = Unmanaged.passRetained(intake)
    var thread = pthread_t()
    let code = pthread_create(
      &thread,
      nil,
      { argument in
        guard let argument else { return nil }
        Unmanaged<ConnectionIntake>.fromOpaque(argument).takeRetainedValue().run()
        return nil
      },
      retained.toOpaque()
    )
    guard code == 0 else {
      retained.release()
      intake.ended()
      throw BoundSocket.Failure(
        errno: code,
        message:
          "there is no thread for an intake of connections: \(String(cString: strerror(code)))"
      )
    }
    pthread_detach(thread)
    return intake
  }

  /// Takes no more connections in. May be called from any thread, and more than once.
  package func close() {
    self.socket.withLock { socket in
      if let socket { _ = shutdown(socket, CInt(SHUT_RDWR)) }
    }
  }

  // MARK: The thread

  private func run() {
    // It is closed by this thread alone, after this loop.
    guard let socket = self.socket.withLock({ $0 }) else { return }
    while self.waitForConnection(socket) {
      self.waitForDescriptors(socket)
      var descriptor: CInt = -1
      let result = grpc_engine_receive_descriptor(socket, &descriptor)
      if result < 0, [EINTR, EAGAIN, ENOMEM, ENOBUFS].contains(errno) {
        // The kernel's shortage passes; what is to be received stays where it is.
        if errno != EINTR { _ = poll(nil, 0, Self.pause) }
        continue
      }
      guard result > 0 else { break }
      if descriptor >= 0 {
        self.take(descriptor)
      } else {
        // This process may open no more descriptors, and the kernel has dropped it.
        self.descriptors.failed(EMFILE)
        self.released.add()
      }
    }
    self.ended()
  }

  /// Waits until there is something to receive: only then is it known whether there is a descriptor
  /// for it, which the kernel would drop.
  ///
  /// - Returns: false when the socket can't be waited for.
  private func waitForConnection(_ socket: CInt) -> Bool {
    var request = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
    while poll(&request, 1, -1) < 0 {
      guard errno == EINTR || errno == EAGAIN || errno == ENOMEM else { return false }
    }
    return true
  }

  /// Leaves connections where they are, in the socket or with the other process, while there are no
  /// descriptors for them.
  private func waitForDescriptors(_ socket: CInt) {
    while !Self.isAtEnd(socket), !self.descriptors.mayOpen() {
      // Ended here and there: nobody waits for what is left.
      var request = pollfd(fd: socket, events: 0, revents: 0)
      if poll(&request, 1, Self.pause) > 0, request.revents & Int16(POLLHUP) != 0 { return }
    }
  }

  /// Whether nothing comes any more that would need a descriptor: the other process has ended its
  /// half, and what it had sent before is taken in.
  private static func isAtEnd(_ socket: CInt) -> Bool {
    var byte: UInt8 = 0
    return recv(socket, &byte, 1, CInt(MSG_PEEK) | CInt(MSG_DONTWAIT)) == 0
  }

  private func ended() {
    self.socket.withLock { socket in
      if let socket { Glibc.close(socket) }
      socket = nil
    }
    self.registry.arrivalEnded()
  }

  private func take(_ descriptor: CInt) {
    // SwiftNIO ends the process where epoll(7) refuses a socket that is connected already.
    guard self.trial.mayWatch(descriptor) else {
      self.descriptors.failed(errno)
      Glibc.close(descriptor)
      return self.released.add()
    }
    self.registry.arrivalBegan()
    let (registry, released) = (self.registry, self.released)
    let (credentials, configuration) = (self.credentials, self.configuration)
    let acceptor = self.acceptor
    // The options of `Listener`'s connections. NIO has no other way to make a channel of a
    // connected socket than its client's bootstrap, which sets TCP_NODELAY itself.
    ClientBootstrap(group: self.group)
      .channelOption(.recvAllocator, value: Listener.receiveAllocator)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try Listener.configure(
            channel,
            credentials: credentials,
            configuration: configuration,
            acceptor: acceptor,
            registry: registry
          )
        }
      }
      .withConnectedSocket(descriptor)
      .whenComplete { result in
        switch result {
        case .success(let channel): channel.closeFuture.whenComplete { _ in released.add() }
        case .failure: released.add()
        }
        registry.arrivalEnded()
      }
  }
}

/// Tries whether epoll(7) takes a descriptor: there may be too many watched
/// (`fs.epoll.max_user_watches`), no memory, or it may be none that can be watched.
private final class WatchTrial: Sendable {
  private let epoll: CInt

  /// - Throws: `BoundSocket.Failure` when there is no descriptor for it.
  init() throws(BoundSocket.Failure) {
    let epoll = grpc_engine_open_epoll()
    guard epoll >= 0 else {
      throw BoundSocket.Failure(
        errno: errno,
        message: "an intake of connections can't watch file descriptors: "
          + String(cString: strerror(errno))
      )
    }
    self.epoll = epoll
  }

  deinit { close(self.epoll) }

  /// - Returns: false, with errno, when it does not.
  func mayWatch(_ descriptor: CInt) -> Bool {
    guard grpc_engine_watch(self.epoll, descriptor) == 0 else { return false }
    _ = grpc_engine_unwatch(self.epoll, descriptor)
    return true
  }
}

/// Tells another process how many connections have gone, by an eventfd(2).
private final class ReleaseCounter: Sendable {
  private let descriptor: CInt?

  init(_ descriptor: CInt?) { self.descriptor = descriptor }

  deinit {
    if let descriptor { close(descriptor) }
  }

  /// Adds one. It never blocks, unless nobody reads until 2^64 - 1.
  func add() {
    guard let descriptor = self.descriptor else { return }
    var one: UInt64 = 1
    _ = write(descriptor, &one, MemoryLayout<UInt64>.size)
  }
}
