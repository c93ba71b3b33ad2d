internal import GRPCEngineLocks
internal import GRPCEngineTransport
package import NIOCore

/// The way from any thread to an event loop: calls that have something for their stream.
///
/// This is the one hand-over towards the event loops. A call puts itself here when it goes from
/// having nothing to having something to send; the loop then takes all of them in one turn and
/// flushes once for each connection.
///
/// Waking a loop that sleeps costs a system call here and several there. So a loop is woken once
/// for whatever gathers until it runs, and while more calls wait for the threads that answer
/// (`Backlog`), it is left asleep until a batch is full or a moment has passed.
package final class CallOutbox: Sendable {
  private struct State {
    var calls: [Call] = []
    var isWakeScheduled = false
    var isTimerArmed = false
  }

  private static let fullBatch = 16
  private static let moment = TimeAmount.microseconds(500)

  private let eventLoop: any EventLoop
  private let backlog: Backlog
  private let state = Locked(State())

  package init(eventLoop: any EventLoop, backlog: Backlog) {
    self.eventLoop = eventLoop
    self.backlog = backlog
  }

  func enqueue(_ call: Call) {
    let shouldWake = self.state.withLock { state -> Bool in
      state.calls.append(call)
      if state.isWakeScheduled { return false }
      if state.isTimerArmed, state.calls.count < Self.fullBatch, self.backlog.isWaiting {
        return false
      }
      state.isWakeScheduled = true
      return true
    }
    if shouldWake { self.eventLoop.execute { self.drain() } }
  }

  private func drain() {
    var batch: [Call] = []
    let shouldArm = self.state.withLock { state -> Bool in
      swap(&batch, &state.calls)
      // The next batch is likely as large; growing an array step by step is what costs.
      state.calls.reserveCapacity(min(batch.count, 256))
      state.isWakeScheduled = false
      guard !batch.isEmpty, !state.isTimerArmed, self.backlog.isWaiting else { return false }
      state.isTimerArmed = true
      return true
    }
    for call in batch { call.writePending() }
    for call in batch { call.flush() }
    if shouldArm { self.eventLoop.scheduleTask(in: Self.moment) { self.momentPassed() } }
  }

  private func momentPassed() {
    self.state.withLock { $0.isTimerArmed = false }
    self.drain()
  }
}
