package import GRPCEngineWire
internal import NIOCore
internal import Synchronization

/// The connections of a server, so that it can drain and close them.
package final class ConnectionRegistry: Sendable {
  private struct State {
    var connections: [ObjectIdentifier: Entry] = [:]
    var isDraining = false
    var whenEmpty: [@Sendable () -> Void] = []
  }

  /// A handler is touched on its event loop only; here it is just carried there.
  private struct Entry: @unchecked Sendable {
    let connection: ConnectionHandler
    let eventLoop: any EventLoop
  }

  private let state = Mutex(State())

  package init() {}

  package var isDraining: Bool { self.state.withLock { $0.isDraining } }
  package var count: Int { self.state.withLock { $0.connections.count } }

  /// - Returns: whether the connection may be served.
  func insert(_ connection: ConnectionHandler) -> Bool {
    self.state.withLock { state in
      guard !state.isDraining else { return false }
      let entry = Entry(connection: connection, eventLoop: connection.eventLoop)
      state.connections[ObjectIdentifier(connection)] = entry
      return true
    }
  }

  func remove(_ connection: ConnectionHandler) {
    let callbacks = self.state.withLock { state -> [@Sendable () -> Void] in
      state.connections[ObjectIdentifier(connection)] = nil
      guard state.isDraining, state.connections.isEmpty else { return [] }
      defer { state.whenEmpty = [] }
      return state.whenEmpty
    }
    for callback in callbacks { callback() }
  }

  /// Drains every connection. May be called from any thread.
  ///
  /// - Parameter whenEmpty: called once, on any thread, when no connection is left.
  package func drain(whenEmpty: @escaping @Sendable () -> Void) {
    let entries = self.state.withLock { state -> [Entry]? in
      state.isDraining = true
      guard !state.connections.isEmpty else { return nil }
      state.whenEmpty.append(whenEmpty)
      return Array(state.connections.values)
    }
    guard let entries else { return whenEmpty() }
    for entry in entries { entry.eventLoop.execute { entry.connection.drain() } }
  }

  /// Ends every call with `status` and closes every connection. May be called from any thread.
  package func cancel(_ status: Status) {
    let entries = self.state.withLock { Array($0.connections.values) }
    for entry in entries { entry.eventLoop.execute { entry.connection.cancel(status) } }
  }
}
