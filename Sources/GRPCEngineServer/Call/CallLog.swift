internal import GRPCEngineLocks
package import GRPCEngineStatistics
package import GRPCEngineWire
package import NIOCore

/// Calls that have ended, until somebody takes them to write them down.
///
/// Recording never waits: what does not fit is dropped, and counted. May be used from any thread.
package final class CallLog: Sendable {
  /// Which calls are recorded. Those that end with a status that is the server's fault always are.
  package struct Filter: Sendable {
    /// The part of the others that is recorded, from 0 to 1.
    package var sample = 1.0
    /// How long a call takes at least to be one of them.
    package var slow = TimeAmount.zero
    package init() {}
  }

  package struct Batch: Sendable {
    package var calls: [CallSummary] = []
    /// Calls that were not recorded since the batch before, as there was no room.
    package var dropped = 0
  }

  private struct State {
    var calls = CircularBuffer<CallSummary>()
    var candidates: UInt64 = 0
    var dropped = 0
    var isClosed = false
  }

  private let filter: Filter
  private let capacity: Int
  private let drops: StatisticsCell
  private let whenFilled: @Sendable () -> Void
  private let state = Locked(State())

  /// - Parameters:
  ///   - capacity: calls that are kept.
  ///   - statistics: where drops are counted.
  ///   - whenFilled: called when there is something to take, when half of the room is taken, and
  ///     when the log is closed; on the thread that recorded, so it must not wait.
  package init(
    filter: Filter,
    capacity: Int = 10_000,
    statistics: ServerStatistics,
    whenFilled: @escaping @Sendable () -> Void
  ) {
    self.filter = filter
    self.capacity = capacity
    self.drops = statistics.slot[.logRecordsDropped]
    self.whenFilled = whenFilled
  }

  /// Records a call, if it is one of those.
  package func record(_ call: CallSummary) {
    let isCertain = call.code.isFaultOfServer
    guard isCertain || call.duration >= self.filter.slow else { return }
    var isDropped = false
    let wakes = self.state.withLock { state -> Bool in
      if !isCertain, self.filter.sample < 1 {
        state.candidates &+= 1
        guard Self.fraction(state.candidates) < self.filter.sample else { return false }
      }
      guard !state.isClosed, state.calls.count < self.capacity else {
        state.dropped += 1
        isDropped = true
        return false
      }
      state.calls.append(call)
      return state.calls.count == 1 || state.calls.count == self.capacity / 2
    }
    if isDropped { self.drops.add() }
    if wakes { self.whenFilled() }
  }

  /// A number from 0 to 1 (exclusively) that looks random, by SplitMix64's mixing function: cheaper
  /// than to ask the system, and not in step with any pattern of calls.
  private static func fraction(_ index: UInt64) -> Double {
    var bits = index &* 0x9e37_79b9_7f4a_7c15
    bits = (bits ^ (bits >> 30)) &* 0xbf58_476d_1ce4_e5b9
    bits = (bits ^ (bits >> 27)) &* 0x94d0_49bb_1331_11eb
    bits ^= bits >> 31
    return Double(bits >> 11) / Double(1 << 53)
  }

  /// Takes the oldest calls.
  package func take(_ maximum: Int) -> Batch {
    self.state.withLock { state in
      var batch = Batch()
      let count = min(maximum, state.calls.count)
      batch.calls.reserveCapacity(count)
      for _ in 0..<count { batch.calls.append(state.calls.removeFirst()) }
      swap(&batch.dropped, &state.dropped)
      return batch
    }
  }

  /// How many calls wait, and whether more may come.
  package var content: (count: Int, isClosed: Bool) {
    self.state.withLock { ($0.calls.count, $0.isClosed) }
  }

  /// Records nothing more. What is there can still be taken.
  package func close() {
    self.state.withLock { $0.isClosed = true }
    self.whenFilled()
  }
}

extension StatusCode {
  /// Whether it says that the server is to blame, as OpenTelemetry's conventions have it
  /// (https://opentelemetry.io/docs/specs/semconv/rpc/grpc/).
  package var isFaultOfServer: Bool {
    switch self {
    case .unknown, .deadlineExceeded, .unimplemented, .internalError, .unavailable, .dataLoss: true
    default: false
    }
  }
}
