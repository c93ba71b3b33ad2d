internal import GRPCEngineLocks
internal import GRPCEngineWire

/// A call of Watch: told that something may have changed, it asks the board, and sends what its
/// client has not heard yet.
///
/// Changes may come from several threads at once. As each asks the board anew, the last one has the
/// last word. A client that does not read is told the newest status when it does.
final class HealthWatcher: Sendable {
  private struct State {
    var lastSent: ServingStatus?
    var isWaiting = false
  }

  let service: String
  private let call: Call
  private let state = Locked(State())

  init(_ call: Call, service: String) {
    self.call = call
    self.service = service
  }

  func update(from board: HealthBoard) {
    // Sent inside the mutex, so that statuses leave in the order in which they were asked for.
    let mustWait = self.state.withLock { state -> Bool in
      guard !state.isWaiting else { return false }
      let status = board.status(of: self.service) ?? .serviceUnknown
      guard status != state.lastSent else { return false }
      state.lastSent = status
      state.isWaiting = self.send(status) == .full
      return state.isWaiting
    }
    guard mustWait else { return }
    self.call.whenWritable {
      self.state.withLock { $0.isWaiting = false }
      self.update(from: board)
    }
  }

  private func send(_ status: ServingStatus) -> Call.SendResult {
    // Too short for compression to fail, or to be of use.
    let sent = try? HealthMessages.response(status).withUnsafeBytes {
      try self.call.send($0, mayCompress: false)
    }
    return sent ?? .terminated
  }

  /// The server stops. Clients watch another one, or this one's successor.
  func end() {
    self.call.finish(Status(code: .unavailable, details: "Server shutting down"), isLast: true)
  }
}
