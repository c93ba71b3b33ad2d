internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineStatistics
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import GRPCEngineWorkers
internal import NIOCore
internal import PythonInterop

extension ServerConfiguration {
  /// Reads the dict that `django_grpc.engine` made of `options`: our own names, whole numbers,
  /// times in milliseconds. What is missing keeps its default; what is unknown is an error, since
  /// Python's table and this one must agree.
  ///
  /// - Returns: `nil` with an exception set.
  static func make(_ values: PythonPointer) -> (ServerConfiguration, WorkerPool.Schedule.Limits)? {
    var configuration = ServerConfiguration()
    var limits = WorkerPool.Schedule.Limits(running: 1, held: 2500)
    var board = BoardPlace()
    let isComplete = PythonCollections.forEach(values) { key in
      guard let name = PythonString.value(key), let item = PythonCollections.value(values, key),
        let value = PythonNumber.int(item)
      else {
        PythonError.raiseTypeError("the engine's configuration is made of str keys and int values")
        return false
      }
      guard configuration.set(name, value) || limits.set(name, value) || board.set(name, value)
      else {
        PythonError.raiseValueError("the engine knows no setting '\(name)'")
        return false
      }
      return true
    }
    guard isComplete else { return nil }
    do {
      configuration.statistics = try board.open()
    } catch {
      if let errno = error.errno {
        PythonError.raiseOSError(errno: errno, error.message)
      } else {
        PythonError.raiseValueError(error.message)
      }
      return nil
    }
    return (configuration, limits)
  }

  /// - Returns: whether there is such a setting.
  private mutating func set(_ name: String, _ value: Int) -> Bool {
    let milliseconds = TimeAmount.milliseconds(Int64(clamping: value))
    switch name {
    case "maximum_concurrent_rpcs": self.maximumConcurrentCalls = value
    case "max_send_message_length": self.maxSendMessageLength = value < 0 ? .max : value
    case "compression":
      self.compression = value == 2 ? .gzip : value == 1 ? .deflate : .identity
    case "enabled_compression":
      // gRPC core's bits: 0 is identity, 1 deflate, 2 gzip.
      var algorithms: Set<CompressionAlgorithm> = []
      if value & 2 != 0 { algorithms.insert(.deflate) }
      if value & 4 != 0 { algorithms.insert(.gzip) }
      self.enabledCompression = EnabledCompression(algorithms)
    case "event_loop_threads": self.eventLoopThreads = max(1, value)
    case "max_receive_message_length":
      self.transport.maxReceiveMessageLength = value < 0 ? .max : value
    case "max_concurrent_streams": self.transport.http2.maxConcurrentStreams = value
    case "max_metadata_size": self.transport.http2.maxHeaderListSize = value
    case "stream_window_size": self.transport.http2.streamWindowSize = value
    case "connection_window_size": self.transport.http2.connectionWindowSize = value
    case "max_connection_memory": self.transport.memory.connection = value < 0 ? .max : value
    case "max_peer_memory": self.transport.memory.pool = value < 0 ? .max : value
    case "max_frame_size": self.transport.http2.maxFrameSize = value
    case "send_buffer_size": self.transport.http2.sendBufferSize = value
    case "keepalive_time_ms": self.transport.keepalive.interval = milliseconds
    case "keepalive_timeout_ms": self.transport.keepalive.timeout = milliseconds
    case "keepalive_permit_without_calls":
      self.transport.keepalive.permitWithoutCalls = value != 0
    case "min_recv_ping_interval_ms":
      self.transport.keepalive.minReceivedPingInterval = milliseconds
    case "max_ping_strikes": self.transport.keepalive.maxPingStrikes = value
    case "max_connections": self.transport.maxConnections = value
    case "max_connection_idle_ms": self.transport.maxConnectionIdle = milliseconds
    case "max_connection_age_ms": self.transport.maxConnectionAge = milliseconds
    case "max_connection_age_grace_ms": self.transport.maxConnectionAgeGrace = milliseconds
    case "handshake_timeout_ms": self.transport.handshakeTimeout = milliseconds
    case "reuse_port": self.transport.reusePort = value != 0
    case "backlog": self.transport.backlog = Int32(clamping: value)
    default: return false
    }
    return true
  }
}

/// Where a parent process keeps the statistics, if there is one.
private struct BoardPlace {
  private var descriptor = -1
  private var slot = 0

  mutating func set(_ name: String, _ value: Int) -> Bool {
    switch name {
    case "statistics_descriptor": self.descriptor = value
    case "statistics_slot": self.slot = value
    default: return false
    }
    return true
  }

  func open() throws(StatisticsBoard.Malformed) -> ServerStatistics {
    guard self.descriptor >= 0 else {
      return ServerStatistics(board: try StatisticsBoard(inMemory: ()))
    }
    let board = try StatisticsBoard(descriptor: CInt(clamping: self.descriptor))
    guard (0..<board.slotCount).contains(self.slot) else {
      throw StatisticsBoard.Malformed(message: "The statistics board has no slot \(self.slot)")
    }
    return ServerStatistics(board: board, slot: self.slot)
  }
}

extension WorkerPool.Schedule.Limits {
  /// More threads than no system has, and yet a number to calculate with.
  private static var most: Int { 1 << 24 }

  fileprivate mutating func set(_ name: String, _ value: Int) -> Bool {
    switch name {
    case "max_workers": self.running = min(max(1, value), Self.most)
    case "max_held_workers": self.held = min(max(0, value), Self.most)
    default: return false
    }
    return true
  }
}
