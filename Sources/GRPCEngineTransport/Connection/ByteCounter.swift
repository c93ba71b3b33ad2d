internal import GRPCEngineStatistics
internal import NIOCore

/// Counts the bytes of a connection, next to its socket: with TLS those that are encrypted.
final class ByteCounter: ChannelDuplexHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundIn = IOData

  private let statistics: StatisticsSlot

  init(_ statistics: StatisticsSlot) { self.statistics = statistics }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    self.statistics[.bytesReceived].add(self.unwrapInboundIn(data).readableBytes)
    context.fireChannelRead(data)
  }

  func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
    self.statistics[.bytesSent].add(self.unwrapOutboundIn(data).readableBytes)
    context.write(data, promise: promise)
  }
}
