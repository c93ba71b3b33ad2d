internal import GRPCEngineTransport
package import NIOCore
internal import Synchronization

/// The way from any thread to an event loop: calls that have something for their stream.
///
/// This is the one hand-over towards the event loops. A call puts itself here when it goes from
/// having nothing to having something to send, and the loop is woken only when the outbox was
/// empty: while it is busy, whatever is added is taken along in one turn and flushed once for
/// each connection.
package final class CallOutbox: Sendable {
  private let eventLoop: any EventLoop
  private let calls = Mutex<[Call]>([])

  package init(eventLoop: any EventLoop) { self.eventLoop = eventLoop }

  func enqueue(_ call: Call) {
    let wasEmpty = self.calls.withLock { calls -> Bool in
      calls.append(call)
      return calls.count == 1
    }
    if wasEmpty { self.eventLoop.execute { self.drain() } }
  }

  private func drain() {
    var batch: [Call] = []
    self.calls.withLock { calls in
      swap(&batch, &calls)
      // The next batch is likely as large; growing an array step by step is what costs.
      calls.reserveCapacity(min(batch.count, 256))
    }
    for call in batch { call.writePending() }
    for call in batch { call.flush() }
  }
}
