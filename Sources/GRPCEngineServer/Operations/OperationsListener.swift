internal import GRPCEngineStatistics
internal import GRPCEngineTransport
internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix

/// The port on which an operator asks for figures, over HTTP/1.
final class OperationsListener: Sendable {
  /// A connection that says nothing for so long is closed; Prometheus asks more often.
  private static let idleTime = TimeAmount.minutes(2)

  private let channel: any Channel
  private let socket: BoundSocket

  private init(channel: any Channel, socket: BoundSocket) {
    self.channel = channel
    self.socket = socket
  }

  /// Begins to accept. Blocks for a moment, so it is not for event loops.
  static func start(
    _ socket: BoundSocket,
    board: StatisticsBoard,
    group: any EventLoopGroup
  ) throws -> OperationsListener {
    let bootstrap = ServerBootstrap(group: group)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          let pipeline = channel.pipeline.syncOperations
          try pipeline.configureHTTPServerPipeline(withErrorHandling: true)
          try pipeline.addHandler(IdleStateHandler(allTimeout: Self.idleTime))
          try pipeline.addHandler(OperationsHandler(board))
        }
      }
    let channel = try bootstrap.withBoundSocket(socket.descriptor).wait()
    return OperationsListener(channel: channel, socket: socket)
  }

  /// Stops accepting. May be called from any thread.
  func close() {
    self.channel.close(promise: nil)
    self.socket.removeFile()
  }
}
