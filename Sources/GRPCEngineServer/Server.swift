internal import GRPCEngineLocks
package import GRPCEngineStatistics
package import GRPCEngineTransport
internal import GRPCEngineWire
package import NIOCore
internal import NIOPosix

/// A gRPC server: ports, methods and the calls between them.
///
/// Life cycle: made → started → draining → stopped. Ports are bound when they are added; threads
/// start with `start`, never before, so that a process may fork in between.
package final class Server: Sendable {
  package struct WrongState: Error {
    package let message: String
  }

  private struct Port {
    let socket: BoundSocket
    let credentials: ServerCredentials?
    let refresh: CredentialsRefresh?
  }

  /// What is bound, and waits for `start`.
  private struct Prepared {
    var ports: [Port] = []
    var sources: [ConnectionIntake.Source] = []
    var operationsSockets: [BoundSocket] = []
    var workerFigures: @Sendable () -> WorkerFigures? = { nil }
  }

  /// What runs from `start` on.
  private struct Running {
    let group: MultiThreadedEventLoopGroup
    /// `nil` where nobody asks for figures.
    let operationsGroup: MultiThreadedEventLoopGroup?
    var listeners: [Listener] = []
    var intakes: [ConnectionIntake] = []
    var operationsListeners: [OperationsListener] = []
    var publisher: StatisticsPublisher?
  }

  private enum Stage {
    case made(Prepared)
    case started(Running)
    /// Nobody listens any more.
    case draining(Running, whenStopped: [@Sendable () -> Void])
    case stopped
  }

  private struct State {
    var stage = Stage.made(Prepared())
    var outboxes: [ObjectIdentifier: CallOutbox] = [:]

    /// Changes what waits for `start`.
    ///
    /// - Returns: false when the server has been started or stopped.
    mutating func prepare(_ change: (inout Prepared) -> Void) -> Bool {
      guard case .made(var prepared) = self.stage else { return false }
      change(&prepared)
      self.stage = .made(prepared)
      return true
    }

    /// What runs, of a server that has been started and has not stopped.
    var running: Running? {
      switch self.stage {
      case .started(let running), .draining(let running, _): running
      case .made, .stopped: nil
      }
    }
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
  private let state = Locked(State())

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
      // `start` may be under way: it takes what it finds once it has the threads.
      if state.prepare({ $0.ports += ports }) { return nil }
      guard case .started(let running) = state.stage else {
        for socket in sockets { socket.close() }
        throw WrongState(message: "Cannot add a port to a server that has been stopped")
      }
      // The event loops last until it has come, also when the server is stopped meanwhile.
      self.connections.arrivalBegan()
      return running.group
    }
    for socket in sockets { socket.own() }
    if let group {
      defer { self.connections.arrivalEnded() }
      try self.listen(ports, on: group)
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
    guard self.state.withLock({ $0.prepare { $0.operationsSockets += sockets } }) else {
      for socket in sockets { socket.close() }
      throw WrongState(message: "Cannot add a metrics port to a server that has been started")
    }
    for socket in sockets { socket.own() }
    return sockets.first?.port ?? 0
  }

  /// Sets who tells how the threads that run handlers fare. It must be set before `start`.
  ///
  /// - Parameter figures: called on an event loop; must not block.
  package func reportWorkers(_ figures: @escaping @Sendable () -> WorkerFigures?) {
    _ = self.state.withLock { $0.prepare { $0.workerFigures = figures } }
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

  /// Tells when the server has fallen idle after calls. To be set before the server starts.
  ///
  /// - Parameter observer: called on event loops; must not block.
  package func observeIdleness(_ observer: @escaping @Sendable () -> Void) {
    self.environment.idleWatch.observer = observer
  }

  /// Serves the connections that another process accepts and hands over; see `ConnectionIntake`.
  /// They wait in the socket until `start`.
  ///
  /// - Throws: `WrongState` when the server has been started.
  package func adoptConnections(from source: ConnectionIntake.Source) throws {
    guard self.state.withLock({ $0.prepare { $0.sources.append(source) } }) else {
      throw WrongState(message: "Cannot adopt connections once the server has started")
    }
  }

  /// Starts the event loops and accepts connections.
  package func start() throws {
    let hasFigures = try self.state.withLock { state in
      guard case .made(let prepared) = state.stage else {
        throw WrongState(message: "Cannot start already-started server!")
      }
      return !prepared.operationsSockets.isEmpty
    }
    // Figures have a thread of their own, so that to write them stops no call.
    let groups = try EventLoopResources.makeGroups(
      [self.configuration.eventLoopThreads] + (hasFigures ? [1] : [])
    )
    let (group, operationsGroup) = (groups[0], hasFigures ? groups.last : nil)
    let prepared = self.state.withLock { state -> Prepared? in
      // Somebody may have drained it, or started it, meanwhile.
      guard case .made(let prepared) = state.stage else { return nil }
      state.stage = .started(Running(group: group, operationsGroup: operationsGroup))
      // The event loops last until all has been started.
      self.connections.arrivalBegan()
      return prepared
    }
    guard let prepared else {
      for group in groups { group.shutdownGracefully { _ in } }
      throw WrongState(message: "Cannot start a server that was started or stopped meanwhile")
    }
    defer { self.connections.arrivalEnded() }
    self.statistics.begin()
    self.startHealth(on: group.next())
    try Self.taking(prepared.operationsSockets, { $0.close() }) { operations in
      try Self.taking(prepared.sources, { $0.close() }) { sources in
        try self.listen(prepared.ports, on: group)
        while let source = sources.popFirst() { try self.startIntake(source, on: group) }
      }
      try self.startOperations(&operations, on: operationsGroup)
      self.startPublisher(
        prepared.workerFigures,
        isWanted: operationsGroup != nil,
        on: group.next()
      )
    }
  }

  /// Has `body` take all of `items`; those that it leaves as it throws are given back.
  private static func taking<Item>(
    _ items: [Item],
    _ giveBack: (Item) -> Void,
    _ body: (inout ArraySlice<Item>) throws -> Void
  ) throws {
    var left = items[...]
    defer { for item in left { giveBack(item) } }
    try body(&left)
  }

  private func startIntake(
    _ source: ConnectionIntake.Source,
    on group: MultiThreadedEventLoopGroup
  ) throws {
    let intake = try ConnectionIntake.start(
      source,
      configuration: self.configuration.transport,
      acceptor: self,
      registry: self.connections,
      group: group,
      descriptors: self.descriptors
    )
    // A server that drains still takes in, and sends away, what is handed over to it.
    let isKept = self.keep(whileDraining: true) { $0.intakes.append(intake) }
    if !isKept { intake.close() }
  }

  /// Keeps what `start` or `addPort` has made, unless the server was drained meanwhile.
  ///
  /// - Returns: false when the caller is to undo it.
  private func keep(whileDraining: Bool = false, _ change: (inout Running) -> Void) -> Bool {
    self.state.withLock { state in
      switch state.stage {
      case .started(var running):
        change(&running)
        state.stage = .started(running)
        return true
      case .draining(var running, let whenStopped) where whileDraining:
        change(&running)
        state.stage = .draining(running, whenStopped: whenStopped)
        return true
      case .made, .draining, .stopped: return false
      }
    }
  }

  /// Looks at the health from now on, and has other processes see it.
  private func startHealth(on eventLoop: any EventLoop) {
    let (health, ready) = (self.health, self.statistics.slot[.ready])
    health.onChange { ready.set($0.isReady ? 1 : 0) }
    ready.set(health.isReady ? 1 : 0)
    health.start(on: eventLoop)
  }

  private func startOperations(
    _ sockets: inout ArraySlice<BoundSocket>,
    on group: MultiThreadedEventLoopGroup?
  ) throws {
    guard let group else { return }
    while let socket = sockets.popFirst() {
      let listener = try OperationsListener.start(
        socket,
        board: self.statistics.board,
        group: group,
        descriptors: self.descriptors
      )
      if !self.keep({ $0.operationsListeners.append(listener) }) { listener.close() }
    }
  }

  /// - Parameter isWanted: whether this server serves figures. Those of a board that other processes
  ///   see are published in any case.
  private func startPublisher(
    _ workerFigures: @escaping @Sendable () -> WorkerFigures?,
    isWanted: Bool,
    on eventLoop: any EventLoop
  ) {
    guard self.statistics.board.isShared || isWanted else { return }
    let publisher = StatisticsPublisher(
      statistics: self.statistics,
      connections: self.connections,
      health: self.health,
      workers: workerFigures
    )
    publisher.start(on: eventLoop)
    if !self.keep(whileDraining: true, { $0.publisher = publisher }) { publisher.stop() }
  }

  /// Listens on ports; when it throws, those that it did not come to are closed.
  private func listen(_ ports: [Port], on group: MultiThreadedEventLoopGroup) throws {
    try Self.taking(ports, { $0.socket.close() }) { ports in
      while let port = ports.popFirst() {
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
        if !self.keep({ $0.listeners.append(listener) }) { listener.close() }
      }
    }
  }

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
    let before = self.state.withLock { state in
      let before = state.stage
      switch before {
      case .made: state.stage = .stopped
      case .started(var running):
        running.listeners = []
        running.operationsListeners = []
        state.stage = .draining(running, whenStopped: [whenStopped])
      case .draining(let running, let others):
        state.stage = .draining(running, whenStopped: others + [whenStopped])
      case .stopped: break
      }
      return before
    }
    // A worker process that drains alone is replaced; when all of them stop, that is announced.
    self.health.startDraining(isReplaced: self.statistics.board.isShared)
    switch before {
    case .made(let prepared):
      for source in prepared.sources { source.close() }
      for port in prepared.ports { port.socket.close() }
      for socket in prepared.operationsSockets { socket.close() }
      whenStopped()
    case .started(let running):
      for listener in running.listeners { listener.close() }
      for listener in running.operationsListeners { listener.close() }
      self.connections.drain { self.stopped() }
    case .draining: break
    case .stopped: whenStopped()
    }
  }

  /// Does what `cancelAllCalls` does once some time has passed, unless the server has stopped then.
  ///
  /// An event loop keeps the time: there may be no thread to be had when a server is to stop.
  package func cancelAllCalls(after time: TimeAmount) {
    // Under the mutex, as the event loops end once the stage is another one.
    self.state.withLock { state in
      _ = state.running?.group.next().scheduleTask(in: time) { [weak self] in
        self?.cancelAllCalls()
      }
    }
  }

  /// Ends every call in flight with UNAVAILABLE and closes every connection.
  package func cancelAllCalls() {
    for intake in self.state.withLock({ $0.running?.intakes ?? [] }) { intake.close() }
    self.connections.cancel(Status(code: .unavailable, details: "Cancelling all calls"))
  }

  private func stopped() {
    let stage = self.state.withLock { state in
      defer { state.stage = .stopped }
      return state.stage
    }
    guard case .draining(let running, let callbacks) = stage else { return }
    running.publisher?.stop()
    for callback in callbacks { callback() }
    // From an event loop of a group itself: it must not wait for its own end.
    running.group.shutdownGracefully { _ in }
    running.operationsGroup?.shutdownGracefully { _ in }
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

  package func connectionEnded(on eventLoop: any EventLoop) {
    self.environment.idleWatch.connectionEnded(on: eventLoop)
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
