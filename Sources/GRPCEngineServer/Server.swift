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
  }

  private struct State {
    var stage = Stage.made
    var ports: [Port] = []
    var listeners: [Listener] = []
    var group: MultiThreadedEventLoopGroup?
    var outboxes: [ObjectIdentifier: CallOutbox] = [:]
    var whenStopped: [@Sendable () -> Void] = []
  }

  package let configuration: ServerConfiguration
  package let methods = MethodTable()
  package let admission: Admission
  /// Set by whoever runs handlers on threads of its own.
  package let backlog = Backlog()
  /// Whether the server is ready, and what its health service says once it is enabled.
  package let health = HealthBoard()
  private let connections = ConnectionRegistry()
  private let state = Mutex(State())

  package init(configuration: ServerConfiguration) {
    self.configuration = configuration
    self.admission = Admission(limit: configuration.maximumConcurrentCalls)
  }

  /// Binds an address; connections wait in the kernel until `start`, unless that has been.
  ///
  /// - Returns: the port bound, 1 for a Unix domain socket.
  /// - Throws: `ListenAddress.Malformed`, `BoundSocket.Failure`, `WrongState`.
  package func addPort(_ address: String, credentials: ServerCredentials?) throws -> Int {
    let socket = try BoundSocket.bind(
      ListenAddress(address),
      reusePort: self.configuration.transport.reusePort,
      backlog: self.configuration.transport.backlog
    )
    let port = Port(socket: socket, credentials: credentials)
    let group = try self.state.withLock { state -> MultiThreadedEventLoopGroup? in
      switch state.stage {
      case .made:
        state.ports.append(port)
        return nil
      case .started:
        return state.group
      case .draining, .stopped:
        socket.close()
        throw WrongState(message: "Cannot add a port to a server that has been stopped")
      }
    }
    if let group { try self.listen(port, on: group) }
    return socket.port
  }

  /// Starts the event loops and accepts connections.
  package func start() throws {
    let ports = try self.state.withLock { state -> [Port] in
      guard state.stage == .made else {
        throw WrongState(message: "Cannot start already-started server!")
      }
      state.stage = .started
      defer { state.ports = [] }
      return state.ports
    }
    let group = MultiThreadedEventLoopGroup(numberOfThreads: self.configuration.eventLoopThreads)
    self.state.withLock { $0.group = group }
    self.health.start(on: group.next())
    for port in ports { try self.listen(port, on: group) }
  }

  private func listen(_ port: Port, on group: MultiThreadedEventLoopGroup) throws {
    let listener = try Listener.start(
      port.socket,
      credentials: port.credentials,
      configuration: self.configuration.transport,
      acceptor: self,
      registry: self.connections,
      group: group
    )
    self.state.withLock { $0.listeners.append(listener) }
  }

  /// An event loop of this server, for timers; `nil` before `start`.
  package var anyEventLoop: (any EventLoop)? { self.state.withLock { $0.group?.next() } }

  /// Connections that are open.
  package var connectionCount: Int { self.connections.count }

  /// Refuses new connections and new calls at once and lets calls in flight end.
  ///
  /// Not for event loops: it waits for the listeners to close.
  ///
  /// - Parameter whenStopped: called once, on any thread, when the last connection is gone; at once
  ///   when the server has stopped or was never started.
  package func drain(whenStopped: @escaping @Sendable () -> Void) {
    let (listeners, ports, isFirst) = self.state.withLock { state -> ([Listener], [Port], Bool?) in
      switch state.stage {
      case .made:
        state.stage = .stopped
        defer { state.ports = [] }
        return ([], state.ports, nil)
      case .stopped:
        return ([], [], nil)
      case .draining:
        state.whenStopped.append(whenStopped)
        return ([], [], false)
      case .started:
        state.stage = .draining
        state.whenStopped.append(whenStopped)
        defer { state.listeners = [] }
        return (state.listeners, [], true)
      }
    }
    self.health.startDraining()
    for port in ports { port.socket.close() }
    for listener in listeners { listener.close() }
    guard let isFirst else { return whenStopped() }
    if isFirst { self.connections.drain { self.stopped() } }
  }

  /// Ends every call in flight with UNAVAILABLE and closes every connection.
  package func cancelAllCalls() {
    self.connections.cancel(Status(code: .unavailable, details: "Cancelling all calls"))
  }

  private func stopped() {
    let (callbacks, group) = self.state.withLock { state in
      state.stage = .stopped
      defer {
        state.whenStopped = []
        state.group = nil
      }
      return (state.whenStopped, state.group)
    }
    for callback in callbacks { callback() }
    // From an event loop of the group itself: it must not wait for its own end.
    group?.shutdownGracefully { _ in }
  }
}

extension Server: StreamAcceptor {
  package func accept(_ stream: ServerStream, head: RequestHead) -> (any StreamReceiver)? {
    guard let handler = self.methods.handler(for: head.path) else {
      Self.reject(stream, Status(code: .unimplemented, details: "Method not found!"))
      return nil
    }
    guard !handler.isLimited || self.admission.admit() else {
      Self.reject(
        stream,
        Status(code: .resourceExhausted, details: "Concurrent RPC limit exceeded!")
      )
      return nil
    }
    let call = Call(
      stream: stream,
      head: head,
      configuration: self.configuration,
      admission: handler.isLimited ? self.admission : nil,
      outbox: self.outbox(of: stream)
    )
    call.begin(with: handler)
    return call
  }

  private static func reject(_ stream: ServerStream, _ status: Status) {
    let trailers = ResponseHeaders.trailers(status, nil)
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
