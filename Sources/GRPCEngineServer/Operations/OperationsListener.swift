internal import GRPCEngineStatistics
internal import GRPCEngineTransport
internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix
internal import Synchronization

/// What those who ask for figures may cost: they are few and small, and the port has no password.
struct OperationsLimits: Sendable {
  /// Connections at a time; those past it wait to be accepted.
  var connections = 32
  /// How long a new connection may take for its first request.
  var firstRequest = TimeAmount.seconds(10)
  /// How long one may take for each after it, from the answer before on; Prometheus asks more often.
  var nextRequest = TimeAmount.minutes(2)
  /// How long the peer may take to read an answer.
  var answer = TimeAmount.seconds(30)
  /// The largest body of a request, in bytes; none of them needs one.
  var body = 4096
}

/// The port on which an operator asks for figures, over HTTP/1.
///
/// It has an event loop of its own, so that an answer, which takes a while where there are many
/// methods, is not made at the expense of calls.
final class OperationsListener: Sendable {
  private let channel: any Channel
  private let socket: BoundSocket
  private let isClosing: ClosingFlag

  private init(channel: any Channel, socket: BoundSocket, isClosing: ClosingFlag) {
    self.channel = channel
    self.socket = socket
    self.isClosing = isClosing
  }

  /// Begins to accept. Blocks for a moment, so it is not for event loops.
  static func start(
    _ socket: BoundSocket,
    board: StatisticsBoard,
    group: any EventLoopGroup,
    descriptors: DescriptorWatch,
    limits: OperationsLimits = OperationsLimits()
  ) throws -> OperationsListener {
    let isClosing = ClosingFlag()
    let connections = ConnectionLimit(limits.connections)
    let bootstrap = ServerBootstrap(group: group)
      .serverChannelOption(.maxMessagesPerRead, value: 1)
      .serverChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          let gate = AcceptGate(connections, descriptors: descriptors, isForOperators: true)
          try channel.pipeline.syncOperations.addHandler(gate)
        }
      }
      // What is read at once is decoded at once, however many requests it holds.
      .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 4096))
      .childChannelOption(.maxMessagesPerRead, value: 1)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          let pipeline = channel.pipeline.syncOperations
          try pipeline.configureHTTPServerPipeline(withErrorHandling: true)
          try pipeline.addHandler(OperationsHandler(board, limits: limits, isClosing: isClosing))
        }
      }
    let channel = try bootstrap.withBoundSocket(socket.descriptor).wait()
    return OperationsListener(channel: channel, socket: socket, isClosing: isClosing)
  }

  /// Gives the address back; connections stay, each for one more answer. Blocks for a moment, so it
  /// is not for event loops.
  func close() {
    self.isClosing.set()
    self.socket.removeFile()
    try? self.channel.close().wait()
  }
}

/// Whether a port has been given back, known to its connections.
final class ClosingFlag: Sendable {
  private let value = Atomic(false)

  func set() { self.value.store(true, ordering: .relaxed) }
  var isSet: Bool { self.value.load(ordering: .relaxed) }
}
