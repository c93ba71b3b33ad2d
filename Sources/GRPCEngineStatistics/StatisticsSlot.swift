/// The numbers of one process: gauges, counters, histograms, methods, and the calls that run.
public struct StatisticsSlot: @unchecked Sendable {
  // Safe to share: a board's memory, touched through atomics.

  /// Numbers that rise and fall. They are set to zero when the slot's process has ended.
  public enum Gauge: Int, CaseIterable, Sendable {
    /// 0 when no process has the slot.
    case process
    /// When the process last wrote its gauges, in milliseconds of CLOCK_MONOTONIC.
    case heartbeat
    /// 1 while the process is ready for calls (see `grpc.health.v1`).
    case ready
    case connections
    /// Calls whose answer is not complete.
    case calls
    /// Calls that wait for a worker thread.
    case queued
    /// Worker threads that run a call or are about to.
    case busyThreads
    case idleThreads
    /// Worker threads in a stream that waits for its peer.
    case heldThreads
    /// Calls on the asyncio loop.
    case loopCalls
    /// When the process started, in milliseconds since 1970.
    case started
    /// Streams that are open.
    case streams
    /// When Python last ran in a worker process, in milliseconds of CLOCK_MONOTONIC; 0 when nobody
    /// writes it. A thread of Python's writes it twice a second.
    case pulse
    /// 1 when the parent has said that the whole server is about to stop.
    case leaving
    /// Bytes that peers make the process hold: what came and was not taken, and what did not leave.
    case heldBytes
    /// Raised before and after the table of running calls is written.
    case callsVersion = 20
    case callsListed
  }

  /// Numbers that only rise.
  public enum Counter: Int, CaseIterable, Sendable {
    case callsEnded = 64
    case connectionsAccepted
    case bytesReceived
    case bytesSent
    case streamsResetByPeer
    case streamsResetByServer
    /// Connections that were told ENHANCE_YOUR_CALM or broke HTTP/2.
    case connectionsFailed
    /// Calls refused because of `maximum_concurrent_rpcs` or a method's limit.
    case callsRefused
    /// Lines of the access log that were dropped.
    case logRecordsDropped
    /// Nanoseconds in which worker threads ran calls.
    case busyNanoseconds
    /// Calls that were ended because their peers made the process hold too much.
    case callsShed
  }

  /// Histograms of the process, by the index of their first bucket.
  public enum ProcessHistogram: Int, Sendable {
    case queueWait = 128
    case interpreterWait = 160
  }

  static let cellSize = 8
  private static let firstMethod = 4096
  public static let methodSize = 1024
  public static let maximumMethods = 250
  private static let firstCall = 256 * 1024
  public static let maximumCalls = 1000

  let base: UnsafeMutableRawPointer

  private func cell(_ index: Int) -> StatisticsCell {
    StatisticsCell(self.base + index * Self.cellSize)
  }

  public subscript(_ gauge: Gauge) -> StatisticsCell { self.cell(gauge.rawValue) }
  public subscript(_ counter: Counter) -> StatisticsCell { self.cell(counter.rawValue) }

  public subscript(_ histogram: ProcessHistogram) -> Histogram {
    Histogram(self.base + histogram.rawValue * Self.cellSize, bounds: Histogram.durations)
  }

  /// Whether a process lives in the slot.
  public var isLive: Bool { self[.process].value != 0 }

  /// Sets what a process has left that has ended. Its counters stay: sums must not fall.
  ///
  /// Calls that it had begun and can't end any more are counted as what their clients see:
  /// UNAVAILABLE.
  public func processEnded() {
    self.clearGauges()
    for method in self.methods {
      var lost = Int(truncatingIfNeeded: method.started.value)
      for code in 0..<MethodStatistics.codes {
        lost &-= Int(truncatingIfNeeded: method.ended(code).value)
      }
      guard lost > 0 else { continue }  // less than none where it died between two counts
      method.ended(MethodStatistics.unavailable).add(lost)
      self[.callsEnded].add(lost)
    }
  }

  func clearGauges() {
    for index in 0..<Counter.callsEnded.rawValue { self.cell(index).set(0) }
    for method in self.methods { method.inFlight.set(0) }
  }

  // MARK: Methods

  func method(at index: Int) -> MethodStatistics {
    MethodStatistics(base: self.base + Self.firstMethod + index * Self.methodSize)
  }

  /// The methods that have numbers.
  public var methods: some Sequence<MethodStatistics> {
    (0..<Self.maximumMethods).lazy.map { self.method(at: $0) }.prefix { $0.isTaken }
  }

  // MARK: Calls

  func call(at index: Int) -> UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(
      start: self.base + Self.firstCall + index * RunningCall.size,
      count: RunningCall.size
    )
  }
}
