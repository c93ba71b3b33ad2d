package import GRPCEngineStatistics
package import GRPCEngineTransport
internal import GRPCEngineWire
package import NIOCore
internal import NIOPosix
internal import Synchronization

/// A gRPC server: ports, methods and the calls between them.
///
/// Life cycle: made → started → draining → stopped. Ports are bound when they are added; threads
/// start with `start`, never before, so that a process may fork in between.
package final class Server: Sendable {
  package struct WrongState: Error {
    package let message: String
  }

  private enum Stage { case made, started, draining, stopped }

  private struct Port {
    let socket: BoundSocket
    let credentials: ServerCredentials?
    let refresh: CredentialsRefresh?
  }

  private struct State {
    var stage = Stage.made
    var ports: [Port] = []
    var listeners: [Listener] = []
    var sources: [ConnectionIntake.Source] = []
    var intakes: [ConnectionIntake] = []
    var group: MultiThreadedEventLoopGroup?
    var outboxes: [ObjectIdentifier: CallOutbox] = [:]
    var whenStopped: [@Sendable () -> Void] = []
    var operationsSockets: [BoundSocket] = []
    var operationsListeners: [OperationsListener] = []
    var operationsGroup: MultiThreadedEventLoopGroup?
    var publisher: StatisticsPublisher?
    var workerFigures: @Sendable () -> WorkerFigures? = { nil }
  }

  package let configuration: ServerConfiguration
  package let methods: MethodTable
  package let statistics: ServerStatistics
  package let admission: Admission
  /// Set by whoever runs handlers on threads of its own.
  package let backlog = Backlog()
  private let connections: ConnectionRegistry
  private let environment: CallEnvironment
  /// Whether the server is ready, and what its health service says once it is enabled.
  package let health: HealthBoard
  private let connectionLimit: ConnectionLimit?
  private let descriptors = DescriptorWatch()
  private let state = Mutex(State())

  package init(configuration: ServerConfiguration) {
    self.configuration = configuration
    self.admission = Admission(limit: configuration.maximumConcurrentCalls)
    self.connectionLimit = configuration.transport.maxConnections.map { ConnectionLimit($0) }
    self.statistics = configuration.statistics ?? ServerStatistics()
    self.health = HealthBoard(maximumWatchers: configuration.maximumHealthWatchers)
    self.methods = MethodTable(statistics: self.statistics)
    self.connections = ConnectionRegistry(
      statistics: self.statistics,
      memory: configuration.transport.memory.pool
    )
    self.environment = CallEnvironment(
      configuration: configuration,
      admission: self.admission,
      statistics: self.statistics
    )
  }

  /// Binds an address; connections wait in the kernel until `start`, unless that has been.
  ///
  /// - Parameters:
  ///   - credentials: `nil` for plaintext.
  ///   - refresh: asked for them before each connection; see `Listener.start`.
  /// - Returns: the port bound, 1 for a Unix domain socket.
  /// - Throws: `ListenAddress.Malformed`, `BoundSocket.Failure`, `WrongState`.
  package func addPort(
    _ address: String,
    credentials: ServerCredentials?,
    refresh: CredentialsRefresh? = nil
  ) throws -> Int {
    let sockets = try BoundSocket.bind(
      ListenAddress(address),
      reusePort: self.configuration.transport.reusePort,
      backlog: self.configuration.transport.backlog
    )
    let ports = sockets.map { Port(socket: $0, credentials: credentials, refresh: refresh) }
    let group = try self.state.withLock { state -> MultiThreadedEventLoopGroup? in
      switch state.stage {
      case .made, .started:
        // `start` may be under way: it takes what it finds once it has the threads.
        if state.group == nil { state.ports += ports }
        return state.group
      case .draining, .stopped:
        for socket in sockets { socket.close() }
        throw WrongState(message: "Cannot add a port to a server that has been stopped")
      }
    }
    if let group {
      for port in ports { try self.listen(port, on: group) }
    }
    return sockets.first?.port ?? 0
  }

  /// Binds an address on which figures are served over HTTP/1, from `start` on until the server
  /// drains, when a successor may have it. It must be added before `start`.
  ///
  /// - Returns: the port bound, 1 for a Unix domain socket.
  /// - Throws: `ListenAddress.Malformed`, `BoundSocket.Failure`, `WrongState`.
  package func addOperationsPort(_ address: String) throws -> Int {
    let sockets = try BoundSocket.bind(
      ListenAddress(address),
      reusePort: false,
      backlog: self.configuration.transport.backlog
    )
    try self.state.withLock { state in
      guard state.stage == .made else {
        for socket in sockets { socket.close() }
        throw WrongState(message: "Cannot add a metrics port to a server that has been started")
      }
      state.operationsSockets += sockets
    }
    return sockets.first?.port ?? 0
  }

  /// Sets who tells how the threads that run handlers fare. It must be set before `start`.
  ///
  /// - Parameter figures: called on an event loop; must not block.
  package func reportWorkers(_ figures: @escaping @Sendable () -> WorkerFigures?) {
    self.state.withLock { $0.workerFigures = figures }
  }

  /// Sets who hears of every call that has ended, refused ones too. It must be set before `start`.
  ///
  /// - Parameter observer: called on any thread, the GIL held or not; must not block.
  package func observeCalls(_ observer: @escaping @Sendable (CallSummary) -> Void) {
    self.environment.observer = observer
  }

  /// Sets who hears what an operator should know, in sentences: that accepting pauses.
  ///
  /// - Parameter observer: called on any thread, event loops among them, at most once a second; must
  ///   not block.
  package func observeNotices(_ observer: @escaping @Sendable (String) -> Void) {
    self.descriptors.observe(observer)
  }

  /// Serves the connections that another process accepts and hands over; see `ConnectionIntake`.
  /// They wait in the socket until `start`.
  ///
  /// - Throws: `WrongState` when the server has been started.
  package func adoptConnections(from source: ConnectionIntake.Source) throws {
    try self.state.withLock { state in
      guard state.stage == .made else {
        throw WrongState(message: "Cannot adopt connections once the server has started")
      }
      state.sources.append(source)
    }
  }

  /// Starts the event loops and accepts connections.
  package func start() throws {
    let hasFigures = try self.state.withLock { state in
      guard state.stage == .made else {
        throw WrongState(message: "Cannot start already-started server!")
      }
      return !state.operationsSockets.isEmpty
    }
    let loops = self.configuration.eventLoopThreads
    try EventLoopResources.probe(loops: loops + (hasFigures ? 1 : 0))
    let group = MultiThreadedEventLoopGroup(numberOfThreads: loops)
    let begun = self.state.withLock {
      state -> (ports: [Port], sources: [ConnectionIntake.Source])? in
      // Somebody may have drained it, or started it, meanwhile.
      guard state.stage == .made else { return nil }
      state.stage = .started
      state.group = group
      defer {
        state.ports = []
        state.sources = []
      }
      return (state.ports, state.sources)
    }
    guard let (ports, sources) = begun else {
      group.shutdownGracefully { _ in }
      throw WrongState(message: "Cannot start a server that was started or stopped meanwhile")
    }
    self.statistics.begin()
    self.startHealth(on: group.next())
    for port in ports { try self.listen(port, on: group) }
    for source in sources {
      let intake = try ConnectionIntake.start(
        source,
        configuration: self.configuration.transport,
        acceptor: self,
        registry: self.connections,
        group: group,
        descriptors: self.descriptors
      )
      self.state.withLock { $0.intakes.append(intake) }
    }
    try self.startOperations(on: group)
  }

  /// Looks at the health from now on, and has other processes see it.
  private func startHealth(on eventLoop: any EventLoop) {
    let (health, ready) = (self.health, self.statistics.slot[.ready])
    health.onChange { ready.set(health.isReady ? 1 : 0) }
    ready.set(health.isReady ? 1 : 0)
    health.start(on: eventLoop)
  }

  private func startOperations(on group: MultiThreadedEventLoopGroup) throws {
    let (sockets, figures) = self.state.withLock { state in
      defer { state.operationsSockets = [] }
      return (state.operationsSockets, state.workerFigures)
    }
    let board = self.statistics.board
    if !sockets.isEmpty {
      let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
      self.state.withLock { $0.operationsGroup = group }
      for socket in sockets {
        let listener = try OperationsListener.start(
          socket,
          board: board,
          group: group,
          descriptors: self.descriptors
        )
        self.state.withLock { $0.operationsListeners.append(listener) }
      }
    }
    // Nobody else can see a board of one's own.
    guard board.isShared || !sockets.isEmpty else { return }
    let publisher = StatisticsPublisher(
      statistics: self.statistics,
      connections: self.connections,
      health: self.health,
      workers: figures
    )
    publisher.start(on: group.next())
    self.state.withLock { $0.publisher = publisher }
  }

  private func listen(_ port: Port, on group: MultiThreadedEventLoopGroup) throws {
    let listener = try Listener.start(
      port.socket,
      credentials: port.credentials,
      refresh: port.refresh,
      configuration: self.configuration.transport,
      acceptor: self,
      registry: self.connections,
      group: group,
      limit: self.connectionLimit,
      descriptors: self.descriptors
    )
    self.state.withLock { $0.listeners.append(listener) }
  }

  /// An event loop of this server, for timers; `nil` before `start`.
  package var anyEventLoop: (any EventLoop)? { self.state.withLock { $0.group?.next() } }

  /// Connections that are open.
  package var connectionCount: Int { self.connections.count }

  /// Refuses new connections and new calls at once and lets calls in flight end.
  ///
  /// Connections that another process hands over are still taken in, and sent away, until that
  /// process ends it.
  ///
  /// Not for event loops: it waits for the listeners to close.
  ///
  /// - Parameter whenStopped: called once, on any thread, when the last connection is gone; at once
  ///   when the server has stopped or was never started.
  package func drain(whenStopped: @escaping @Sendable () -> Void) {
    let (listeners, operations, sockets, isFirst) = self.state.withLock {
      state -> ([Listener], [OperationsListener], [BoundSocket], Bool?) in
      switch state.stage {
      case .made:
        state.stage = .stopped
        defer {
          state.ports = []
          state.operationsSockets = []
          state.sources = []
        }
        for source in state.sources { source.close() }
        return ([], [], state.ports.map(\.socket) + state.operationsSockets, nil)
      case .stopped:
        return ([], [], [], nil)
      case .draining:
        state.whenStopped.append(whenStopped)
        return ([], [], [], false)
      case .started:
        state.stage = .draining
        state.whenStopped.append(whenStopped)
        defer {
          state.listeners = []
          state.operationsListeners = []
        }
        return (state.listeners, state.operationsListeners, [], true)
      }
    }
    // A worker process that drains alone is replaced; when all of them stop, that is announced.
    self.health.startDraining(isReplaced: self.statistics.board.isShared)
    for socket in sockets { socket.close() }
    for listener in listeners { listener.close() }
    for listener in operations { listener.close() }
    guard let isFirst else { return whenStopped() }
    if isFirst { self.connections.drain { self.stopped() } }
  }

  /// Ends every call in flight with UNAVAILABLE and closes every connection.
  package func cancelAllCalls() {
    for intake in self.state.withLock({ $0.intakes }) { intake.close() }
    self.connections.cancel(Status(code: .unavailable, details: "Cancelling all calls"))
  }

  private func stopped() {
    let (callbacks, groups) = self.state.withLock { state in
      state.stage = .stopped
      defer {
        state.whenStopped = []
        state.group = nil
        state.operationsGroup = nil
        state.publisher = nil
      }
      state.publisher?.stop()
      return (state.whenStopped, [state.group, state.operationsGroup].compactMap(\.self))
    }
    for callback in callbacks { callback() }
    // From an event loop of a group itself: it must not wait for its own end.
    for group in groups { group.shutdownGracefully { _ in } }
  }
}

extension Server: StreamAcceptor {
  package func accept(_ stream: ServerStream, head: RequestHead) -> (any StreamReceiver)? {
    guard let method = self.methods.method(for: head.path) else {
      let status = Status(code: .unimplemented, details: "Method not found!")
      self.refuse(stream, head, status, counting: self.statistics.otherMethods)
      return nil
    }
    guard self.configuration.enabledCompression.contains(head.encoding) else {
      let details = "Compression algorithm '\(head.encoding.name)' is disabled."
      let status = Status(code: .unimplemented, details: details)
      self.refuse(stream, head, status, counting: method.statistics)
      return nil
    }
    guard !method.handler.isLimited || self.admission.admit() else {
      let status = Status(code: .resourceExhausted, details: "Concurrent RPC limit exceeded!")
      self.statistics.slot[.callsRefused].add()
      let pushback = method.limits?.pushback
      self.refuse(stream, head, status, pushback, counting: method.statistics)
      return nil
    }
    if let length = method.limits?.maximumMessageLength {
      stream.limitMessages(to: length)
    }
    let call = Call(
      stream: stream,
      head: head,
      method: method,
      environment: self.environment,
      outbox: self.outbox(of: stream)
    )
    call.begin()
    return call
  }

  private func refuse(
    _ stream: ServerStream,
    _ head: RequestHead,
    _ status: Status,
    _ metadata: Metadata? = nil,
    counting method: MethodStatistics
  ) {
    method.started.add()
    method.ended(status.code.rawValue).add()
    method.durations.record(0)
    self.statistics.slot[.callsEnded].add()
    if let observer = self.environment.observer {
      observer(
        CallSummary(
          path: head.path,
          peer: stream.peer,
          code: status.code,
          accepted: stream.eventLoop.now,
          duration: .zero,
          queueWait: nil,
          traffic: CallSummary.Traffic(),
          queries: CallSummary.Queries()
        )
      )
    }
    let trailers = ResponseHeaders.trailers(status, metadata)
    stream.sendEnd(messages: nil, trailers: ResponseHeaders.trailersOnly(trailers))
  }

  /// The outbox of a connection's event loop, found once a connection.
  private func outbox(of stream: ServerStream) -> CallOutbox {
    if let outbox = stream.connection.attachment as? CallOutbox { return outbox }
    let eventLoop = stream.eventLoop
    let outbox = self.state.withLock { state in
      let key = ObjectIdentifier(eventLoop)
      let outbox = state.outboxes[key] ?? CallOutbox(eventLoop: eventLoop, backlog: self.backlog)
      state.outboxes[key] = outbox
      return outbox
    }
    stream.connection.attachment = outbox
    return outbox
  }
}
