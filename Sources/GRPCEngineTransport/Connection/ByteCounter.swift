internal import GRPCEngineStatistics
internal import NIOCore

/// Counts the bytes of a connection, next to its socket: with TLS those that are encrypted.
final class ByteCounter: ChannelDuplexHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundIn = IOData

  private let statistics: StatisticsSlot

  /// Bytes given to the socket.
  private(set) var sent = 0

  init(_ statistics: StatisticsSlot) { self.statistics = statistics }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    self.statistics[.bytesReceived].add(self.unwrapInboundIn(data).readableBytes)
    context.fireChannelRead(data)
  }

  func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
    let count = self.unwrapOutboundIn(data).readableBytes
    self.sent += count
    self.statistics[.bytesSent].add(count)
    context.write(data, promise: promise)
  }
}
