internal import GRPCEngineStatistics
internal import GRPCEngineWire

/// The numbers of a board, summed over its processes, in Prometheus' text format
/// (https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4).
///
/// What go-grpc-prometheus and its kin in other languages measure has their names, so that
/// dashboards made for those work.
struct PrometheusText {
  static let contentType = "text/plain; version=0.0.4; charset=utf-8"

  private(set) var text = ""
  private let board: StatisticsBoard

  init(_ board: StatisticsBoard) {
    self.board = board
    self.text.reserveCapacity(16 * 1024)
    self.addMethods()
    self.addProcesses()
    self.addWorkers()
  }

  // MARK: Methods

  /// The numbers of one method over all processes.
  private struct MethodSum {
    let labels: String
    var inFlight: UInt64 = 0
    var started: UInt64 = 0
    var ended = [UInt64](repeating: 0, count: MethodStatistics.codes)
    var durations = HistogramSum(Histogram.durations)
    var received = HistogramSum(Histogram.sizes)
    var sent = HistogramSum(Histogram.sizes)

    init(_ method: MethodStatistics) {
      // "/package.Service/Method"; what nobody registered has no service.
      let parts = method.name.split(separator: "/", maxSplits: 1).map(PrometheusText.escape)
      let service = parts.count == 2 ? parts[0] : "unknown"
      let kind = CallKind(rawValue: method.kind) ?? .unaryUnary
      self.labels =
        "grpc_type=\"\(kind.prometheusName)\",grpc_service=\"\(service)\","
        + "grpc_method=\"\(parts.last ?? "")\""
    }

    mutating func add(_ method: MethodStatistics, isLive: Bool) {
      if isLive { self.inFlight &+= method.inFlight.value }
      self.started &+= method.started.value
      for code in 0..<MethodStatistics.codes { self.ended[code] &+= method.ended(code).value }
      self.durations.add(method.durations)
      self.received.add(method.received)
      self.sent.add(method.sent)
    }
  }

  private struct HistogramSum {
    let bounds: [UInt64]
    var buckets: [UInt64]
    var sum: UInt64 = 0
    var count: UInt64 { self.buckets.reduce(0, &+) }

    init(_ bounds: [UInt64]) {
      self.bounds = bounds
      self.buckets = [UInt64](repeating: 0, count: bounds.count + 1)
    }

    mutating func add(_ histogram: Histogram) {
      for (index, value) in histogram.buckets.enumerated() { self.buckets[index] &+= value }
      self.sum &+= histogram.sum
    }
  }

  private mutating func addMethods() {
    var sums: [String: MethodSum] = [:]
    for slot in self.board.slots {
      for method in slot.methods {
        sums[method.name, default: MethodSum(method)].add(method, isLive: slot.isLive)
      }
    }
    let methods = sums.sorted { $0.key < $1.key }.map(\.value)
    self.describe("grpc_server_started_total", .counter, "Calls that came.")
    for method in methods {
      self.sample("grpc_server_started_total", method.labels, method.started)
    }
    self.describe("grpc_server_handled_total", .counter, "Calls that ended, by status.")
    for method in methods {
      for (code, count) in method.ended.enumerated() where count > 0 || code == 0 {
        let name = StatusCode(rawValue: code)?.name ?? ""
        self.sample("grpc_server_handled_total", "\(method.labels),grpc_code=\"\(name)\"", count)
      }
    }
    self.describe("grpc_server_in_flight", .gauge, "Calls whose answer is not complete.")
    for method in methods {
      self.sample("grpc_server_in_flight", method.labels, method.inFlight)
    }
    self.describe("grpc_server_msg_received_total", .counter, "Messages from clients.")
    for method in methods {
      self.sample("grpc_server_msg_received_total", method.labels, method.received.count)
    }
    self.describe("grpc_server_msg_sent_total", .counter, "Messages to clients.")
    for method in methods {
      self.sample("grpc_server_msg_sent_total", method.labels, method.sent.count)
    }
    let durations = "From a call's headers to the end of its answer."
    self.describe("grpc_server_handling_seconds", .histogram, durations)
    for method in methods {
      self.histogram("grpc_server_handling_seconds", method.labels, method.durations, scale: 1e-9)
    }
    self.describe("grpc_server_msg_received_bytes", .histogram, "Sizes of messages from clients.")
    for method in methods {
      self.histogram("grpc_server_msg_received_bytes", method.labels, method.received)
    }
    self.describe("grpc_server_msg_sent_bytes", .histogram, "Sizes of messages to clients.")
    for method in methods {
      self.histogram("grpc_server_msg_sent_bytes", method.labels, method.sent)
    }
  }

  // MARK: Processes

  private mutating func addProcesses() {
    let slots = Array(self.board.slots)
    let live = slots.filter(\.isLive)
    func total(_ counter: StatisticsSlot.Counter) -> UInt64 {
      slots.reduce(0) { $0 &+ $1[counter].value }
    }
    func sum(_ gauge: StatisticsSlot.Gauge) -> UInt64 {
      live.reduce(0) { $0 &+ $1[gauge].value }
    }
    for (name, gauge, help) in Self.gauges {
      self.describe(name, .gauge, help)
      self.sample(name, "", sum(gauge))
    }
    self.describe("grpc_server_worker_threads", .gauge, "Worker threads, by what they do.")
    for (state, gauge) in Self.threadStates {
      self.sample("grpc_server_worker_threads", "state=\"\(state)\"", sum(gauge))
    }
    for (name, counter, help) in Self.counters {
      self.describe(name, .counter, help)
      self.sample(name, "", total(counter))
    }
    let resets = "Streams that were reset, by whom."
    self.describe("grpc_server_streams_reset_total", .counter, resets)
    self.sample("grpc_server_streams_reset_total", "by=\"peer\"", total(.streamsResetByPeer))
    self.sample("grpc_server_streams_reset_total", "by=\"server\"", total(.streamsResetByServer))
    let busy = "Time in which worker threads ran calls."
    self.describe("grpc_server_worker_busy_seconds_total", .counter, busy)
    self.sample("grpc_server_worker_busy_seconds_total", "", Double(total(.busyNanoseconds)) * 1e-9)
    for (name, index, help) in Self.histograms {
      self.describe(name, .histogram, help)
      var histogram = HistogramSum(Histogram.durations)
      for slot in slots { histogram.add(slot[index]) }
      self.histogram(name, "", histogram, scale: 1e-9)
    }
  }

  private static let gauges: [(String, StatisticsSlot.Gauge, String)] = [
    ("grpc_server_connections", .connections, "Open connections."),
    ("grpc_server_streams", .streams, "Open HTTP/2 streams."),
    ("grpc_server_held_bytes", .heldBytes, "Memory that clients make the server hold."),
    ("grpc_server_queue_length", .queued, "Calls that wait for a worker thread."),
    ("grpc_server_loop_calls", .loopCalls, "Calls on asyncio loops."),
    ("grpc_server_ready_processes", .ready, "Processes that are ready for calls."),
  ]
  private static let threadStates: [(String, StatisticsSlot.Gauge)] = [
    ("busy", .busyThreads), ("idle", .idleThreads), ("held", .heldThreads),
  ]
  private static let counters: [(String, StatisticsSlot.Counter, String)] = [
    ("grpc_server_connections_total", .connectionsAccepted, "Connections that came."),
    (
      "grpc_server_connections_failed_total", .connectionsFailed,
      "Connections that were ended for what their peer did."
    ),
    ("grpc_server_refused_total", .callsRefused, "Calls that were refused because of a limit."),
    (
      "grpc_server_shed_total", .callsShed,
      "Calls that were ended because clients made the server hold too much."
    ),
    ("grpc_server_received_bytes_total", .bytesReceived, "Bytes from sockets."),
    ("grpc_server_sent_bytes_total", .bytesSent, "Bytes to sockets."),
    (
      "grpc_server_log_records_dropped_total", .logRecordsDropped,
      "Lines of the access log that were dropped."
    ),
  ]
  private static let histograms: [(String, StatisticsSlot.ProcessHistogram, String)] = [
    (
      "grpc_server_queue_wait_seconds", .queueWait,
      "Time that calls waited for a worker thread or a loop."
    ),
    (
      "grpc_server_gil_wait_seconds", .interpreterWait,
      "Time that woken worker threads waited for the interpreter's lock."
    ),
  ]

  // MARK: Workers

  private mutating func addWorkers() {
    let live = self.board.slots.filter(\.isLive)
    self.describe("grpc_server_processes", .gauge, "Processes that serve.")
    self.sample("grpc_server_processes", "", UInt64(live.count))
    let restarts = "Worker processes that were replaced, by reason."
    self.describe("grpc_server_worker_restarts_total", .counter, restarts)
    for reason in StatisticsBoard.RestartReason.allCases {
      self.sample(
        "grpc_server_worker_restarts_total",
        "reason=\"\(reason.rawValue)\"",
        self.board[restarts: reason].value
      )
    }
    let processes = live.map { ($0, ProcessFigures(process: $0[.process].value)) }
    self.describe("grpc_server_process_resident_bytes", .gauge, "Resident memory of a process.")
    for (slot, figures) in processes {
      let labels = "pid=\"\(slot[.process].value)\""
      self.sample("grpc_server_process_resident_bytes", labels, figures.residentBytes)
    }
    let cpu = "Processor time of a process, user and system."
    self.describe("grpc_server_process_cpu_seconds_total", .counter, cpu)
    for (slot, figures) in processes {
      let labels = "pid=\"\(slot[.process].value)\""
      self.sample("grpc_server_process_cpu_seconds_total", labels, figures.cpuSeconds)
    }
    let starts = "When a process started, in seconds since 1970."
    self.describe("grpc_server_process_start_time_seconds", .gauge, starts)
    for slot in live {
      let labels = "pid=\"\(slot[.process].value)\""
      let seconds = Double(slot[.started].value) / 1000
      self.sample("grpc_server_process_start_time_seconds", labels, seconds)
    }
  }

  // MARK: Format

  private enum MetricType: String { case counter, gauge, histogram }

  private mutating func describe(_ name: String, _ type: MetricType, _ help: String) {
    self.text += "# HELP \(name) \(help)\n# TYPE \(name) \(type.rawValue)\n"
  }

  private mutating func sample(
    _ name: String,
    _ labels: String,
    _ value: some LosslessStringConvertible
  ) {
    self.text += labels.isEmpty ? "\(name) \(value)\n" : "\(name){\(labels)} \(value)\n"
  }

  /// - Parameter scale: what one of the histogram's units is, of the metric's.
  private mutating func histogram(
    _ name: String,
    _ labels: String,
    _ histogram: HistogramSum,
    scale: Double = 1
  ) {
    let prefix = labels.isEmpty ? "" : "\(labels),"
    var count: UInt64 = 0
    for (index, bound) in histogram.bounds.enumerated() {
      count &+= histogram.buckets[index]
      let bound = scale == 1 ? "\(bound)" : "\(Self.round(Double(bound) * scale))"
      self.sample("\(name)_bucket", "\(prefix)le=\"\(bound)\"", count)
    }
    self.sample("\(name)_bucket", "\(prefix)le=\"+Inf\"", histogram.count)
    if scale == 1 {
      self.sample("\(name)_sum", labels, histogram.sum)
    } else {
      self.sample("\(name)_sum", labels, Double(histogram.sum) * scale)
    }
    self.sample("\(name)_count", labels, histogram.count)
  }

  /// A bound in seconds without the noise of its conversion: 0.00025, not 0.00025000000000000006.
  private static func round(_ seconds: Double) -> Double { (seconds * 1e6).rounded() / 1e6 }

  /// Label values may hold anything but these, bare.
  private static func escape(_ value: some StringProtocol) -> String {
    var escaped = ""
    for character in value.unicodeScalars {
      switch character {
      case "\\": escaped += "\\\\"
      case "\"": escaped += "\\\""
      case "\n": escaped += "\\n"
      default: escaped.unicodeScalars.append(character)
      }
    }
    return escaped
  }
}

extension CallKind {
  fileprivate var prometheusName: String {
    switch self {
    case .unaryUnary: "unary"
    case .unaryStream: "server_stream"
    case .streamUnary: "client_stream"
    case .streamStream: "bidi_stream"
    }
  }
}
