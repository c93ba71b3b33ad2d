internal import NIOCore
internal import NIOSSL

/// Sits before the TLS handler and lets a `HandshakeReader` see what passes.
final class HandshakeObserver: ChannelDuplexHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundIn = ByteBuffer

  private(set) var reader = HandshakeReader()

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    if !self.reader.isDone { self.reader.receive(self.unwrapInboundIn(data).readableBytesView) }
    context.fireChannelRead(data)
  }

  func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
    if !self.reader.isDone { self.reader.send(self.unwrapOutboundIn(data).readableBytesView) }
    context.write(data, promise: promise)
  }
}

extension Handshake {
  init(version: TLSVersion?, _ reader: HandshakeReader?) {
    switch version {
    case .tlsv13: self.version = "TLSv1.3"
    case .tlsv12: self.version = "TLSv1.2"
    default: self.version = nil
    }
    self.serverName = reader?.serverName
    self.keyExchangeGroup = reader?.keyExchangeGroup
    self.isResumed = reader?.isResumed ?? false
  }
}
