internal import GRPCEngineLocks
internal import GRPCEngineStatistics
package import NIOCore
internal import NIOPosix
internal import NIOSSL

/// Accepts connections on a bound socket, until it is closed.
package final class Listener: Sendable {
  /// Bounds how long a flood of connections can keep a listener open.
  private static let mostTimeToAccept = TimeAmount.seconds(1)

  /// Connections that are accepted before it is looked again whether there may be more.
  private static let acceptedAtOnce: UInt = 4

  private let channel: any Channel
  private let socket: BoundSocket
  private let registry: ConnectionRegistry
  private let group: any EventLoopGroup

  private init(
    channel: any Channel,
    socket: BoundSocket,
    registry: ConnectionRegistry,
    group: any EventLoopGroup
  ) {
    self.channel = channel
    self.socket = socket
    self.registry = registry
    self.group = group
    registry.arrivalBegan()
  }

  /// Begins to accept. Blocks for a moment, so it is not for event loops.
  ///
  /// - Parameters:
  ///   - credentials: what a secure port shows; `nil` for plaintext with prior knowledge
  ///     (RFC 9113 section 3.3).
  ///   - refresh: asked on an event loop before each connection, to renew the credentials if they
  ///     have to be, and to call what it is given, on any thread; a connection does not wait for it
  ///     longer than `handshakeTimeout`.
  ///   - group: the event loops over which connections are spread.
  ///   - limit: how many connections there may be; shared with the server's other listeners.
  ///   - descriptors: whether there are file descriptors for more; likewise.
  package static func start(
    _ socket: BoundSocket,
    credentials: ServerCredentials?,
    refresh: CredentialsRefresh? = nil,
    configuration: TransportConfiguration,
    acceptor: any StreamAcceptor,
    registry: ConnectionRegistry,
    group: any EventLoopGroup,
    limit: ConnectionLimit? = nil,
    descriptors: DescriptorWatch = DescriptorWatch()
  ) throws -> Listener {
    let batch: UInt = limit == nil ? Self.acceptedAtOnce : 1
    var bootstrap = ServerBootstrap(group: group)
      .serverChannelOption(.maxMessagesPerRead, value: batch)
      .serverChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          let gate = AcceptGate(limit, descriptors: descriptors)
          try channel.pipeline.syncOperations.addHandler(gate)
        }
      }
      .childChannelOption(.recvAllocator, value: Self.receiveAllocator)
      .childChannelInitializer { channel in
        Self.refreshed(channel, refresh, within: configuration.handshakeTimeout, registry)
          .flatMapThrowing {
            try Self.configure(
              channel,
              credentials: credentials,
              configuration: configuration,
              acceptor: acceptor,
              registry: registry
            )
          }
      }
    if socket.isTCP {
      // Unix domain sockets refuse the options of TCP.
      bootstrap = bootstrap.childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
    }
    let channel = try bootstrap.withBoundSocket(socket.descriptor).wait()
    // NIO calls listen(2) with a backlog of 128 as it takes the descriptor, before it looks at any
    // option; calling it again widens the queue.
    socket.setBacklog(configuration.backlog)
    return Listener(channel: channel, socket: socket, registry: registry, group: group)
  }

  private static func refreshed(
    _ channel: any Channel,
    _ refresh: CredentialsRefresh?,
    within limit: TimeAmount,
    _ registry: ConnectionRegistry
  ) -> EventLoopFuture<Void> {
    guard let refresh else { return channel.eventLoop.makeSucceededVoidFuture() }
    let refreshed = channel.eventLoop.makePromise(of: Void.self)
    let outcome = FirstOutcome(refreshed)
    let timer = channel.eventLoop.scheduleTask(in: limit) {
      outcome.set(.failure(ChannelError.connectTimeout(limit)))
    }
    // The server is there for it until then, also if it stops; and cuts it with the others.
    let arrival = registry.arrivalBegan {
      outcome.set(.failure(ChannelError.ioOnClosedChannel))
    }
    refreshed.futureResult.whenComplete { _ in
      timer.cancel()
      // Once it is a connection: for that it goes to the listener's event loop and back.
      let listenerLoop = channel.parent?.eventLoop ?? channel.eventLoop
      channel.eventLoop.execute {
        listenerLoop.execute { channel.eventLoop.execute { registry.arrivalEnded(arrival) } }
      }
    }
    refresh { outcome.set(.success(())) }
    return refreshed.futureResult
  }

  /// Reads of up to 64 KiB: a burst of calls is then one read, one batch and one flush.
  static var receiveAllocator: AdaptiveRecvByteBufferAllocator {
    AdaptiveRecvByteBufferAllocator(minimum: 2048, initial: 8192, maximum: 65_536)
  }

  /// Makes a connection of a channel; called on its event loop.
  package static func configure(
    _ channel: any Channel,
    credentials: ServerCredentials?,
    configuration: TransportConfiguration,
    acceptor: any StreamAcceptor,
    registry: ConnectionRegistry
  ) throws {
    let pipeline = channel.pipeline.syncOperations
    try pipeline.addHandler(ByteCounter(registry.statistics.slot))
    let tls = credentials?.makeHandler()
    if let tls {
      try pipeline.addHandler(HandshakeObserver())
      try pipeline.addHandler(tls)
    } else if let local = credentials?.local {
      try pipeline.addHandler(LocalGuard(local))
    }
    let connection = ConnectionHandler(
      configuration: configuration,
      acceptor: acceptor,
      registry: registry,
      isSecure: tls != nil,
      eventLoop: channel.eventLoop
    )
    try pipeline.addHandler(connection)
  }

  /// Stops accepting and gives the address back; connections stay. Blocks for a moment, so it is
  /// not for event loops.
  ///
  /// Who waits to be accepted has connected, and may have sent a call: closing the socket would reset
  /// that connection. So those are taken in first, also while the server drains.
  package func close() {
    let eventLoop = self.channel.eventLoop
    let closed = eventLoop.makePromise(of: Void.self)
    let deadline = NIODeadline.now() + Self.mostTimeToAccept
    // First, so that a file which a successor makes there from now on stays, see `BoundSocket`.
    self.socket.removeFile()
    // Then hardly anybody can come between the last look and the end. The kernel drops the SYN of
    // others, who try again, and find a successor or nobody. Not where others hold the socket, as
    // systemd does: there they wait for whoever accepts next.
    if !self.socket.isAdopted { self.socket.setBacklog(0) }
    eventLoop.execute { self.closeOnceEmpty(by: deadline, closed) }
    try? closed.futureResult.wait()
    self.endArrivals()
  }

  /// Looks again and again, in between of which the event loop accepts.
  private func closeOnceEmpty(by deadline: NIODeadline, _ closed: EventLoopPromise<Void>) {
    if self.channel.isActive, self.socket.hasWaiting, NIODeadline.now() < deadline {
      // Not `execute`, after which an event loop looks at no socket before the task has run.
      self.channel.eventLoop.scheduleTask(in: .microseconds(100)) {
        self.closeOnceEmpty(by: deadline, closed)
      }
    } else {
      self.channel.close(promise: closed)
    }
  }

  /// Tells the registry that no more connections come, when those that were accepted last have got
  /// to it: from the listener's event loop to their own, back, and there again.
  private func endArrivals() {
    let registry = self.registry
    let eventLoop = self.channel.eventLoop
    for connectionLoop in self.group.makeIterator() {
      registry.arrivalBegan()
      connectionLoop.execute {
        eventLoop.execute { connectionLoop.execute { registry.arrivalEnded() } }
      }
    }
    registry.arrivalEnded()
  }
}

/// Completes a promise once. Whoever comes later does not touch it: its event loop may have ended.
private final class FirstOutcome: Sendable {
  private let promise: Locked<EventLoopPromise<Void>?>

  init(_ promise: EventLoopPromise<Void>) { self.promise = Locked(promise) }

  func set(_ outcome: Result<Void, any Error>) {
    let promise = self.promise.withLock { promise in
      defer { promise = nil }
      return promise
    }
    promise?.completeWith(outcome)
  }
}
