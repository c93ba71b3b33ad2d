package import NIOCore

/// What a server's readiness depends on. A value that is told the time.
package struct Readiness: Sendable {
  /// Why a server is not ready.
  package struct Problem: Hashable, Sendable {
    package enum Cause: String, Hashable, Sendable {
      /// It is about to stop, or stops.
      case shutdown
      /// A readiness check failed, or none has passed yet.
      case checks
      /// The checks have not said for too long that all is well.
      case lease
      /// Calls wait in the queue for too long.
      case queue
      /// Its own status, that of the service "", was set to something else than SERVING.
      case status
    }

    package let cause: Cause
    /// For people.
    package let text: String
  }

  private enum Checks {
    /// Nobody checks anything: the server is ready unless something else speaks against it.
    case none
    case failed(String)
    case passed(until: NIODeadline)
  }

  private var isShuttingDown = false
  private var checks = Checks.none
  private var queueProblem: String?

  /// The first of these that holds: a shutdown, the queue, the checks.
  package func problem(at now: NIODeadline) -> Problem? {
    if self.isShuttingDown { return Problem(cause: .shutdown, text: "the server shuts down") }
    if let text = self.queueProblem { return Problem(cause: .queue, text: text) }
    switch self.checks {
    case .none: return nil
    case .failed(let text): return Problem(cause: .checks, text: text)
    case .passed(let until):
      guard now >= until else { return nil }
      return Problem(cause: .lease, text: "the readiness checks have not passed in time")
    }
  }

  package mutating func shutDown() { self.isShuttingDown = true }

  /// - Parameter until: when that has to be said again; `nil` for never.
  package mutating func checksPassed(until: NIODeadline?) {
    self.checks = until.map { .passed(until: $0) } ?? .none
  }

  package mutating func checksFailed(_ text: String) { self.checks = .failed(text) }

  /// - Parameters:
  ///   - wait: how long the oldest call in the queue has waited; `nil` when none waits.
  ///   - limit: how long it may.
  package mutating func queueWaits(_ wait: TimeAmount?, limit: TimeAmount) {
    guard let wait, wait > limit else {
      self.queueProblem = nil
      return
    }
    let seconds = Double(limit.nanoseconds) / 1e9
    self.queueProblem = "a call has waited for longer than \(seconds) s in the queue"
  }
}
