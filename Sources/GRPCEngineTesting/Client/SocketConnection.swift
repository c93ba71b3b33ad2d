internal import Glibc
package import NIOCore
internal import NIOPosix

/// A connection over a real socket.
package final class SocketConnection: ByteConnection {
  private struct Inbound {
    var bytes: [ByteBuffer] = []
    var isClosed = false
  }

  /// What the event loop hands over to the test's thread.
  private final class Collector: ChannelInboundHandler, Sendable {
    typealias InboundIn = ByteBuffer
    let inbound = Monitor(Inbound())

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      let bytes = self.unwrapInboundIn(data)
      self.inbound.update { $0.bytes.append(bytes) }
    }

    func channelInactive(context: ChannelHandlerContext) {
      self.inbound.update { $0.isClosed = true }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
      context.close(promise: nil)
    }
  }

  private let channel: any Channel
  private let collector: Collector

  /// - Parameters:
  ///   - receiveBuffer: the kernel's buffer for a peer that does not read; `nil` for its default.
  ///   - configure: adds what sits below the bytes, such as TLS.
  package init(
    to address: SocketAddress,
    receiveBuffer: Int? = nil,
    configure: @escaping @Sendable (any Channel) throws -> Void = { _ in }
  ) throws {
    let collector = Collector()
    var bootstrap = ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
      .channelOption(.autoRead, value: false)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try configure(channel)
          try channel.pipeline.syncOperations.addHandler(collector)
        }
      }
    if let receiveBuffer {
      bootstrap = bootstrap.channelOption(.socketOption(.so_rcvbuf), value: receiveBuffer)
    }
    self.collector = collector
    self.channel = try bootstrap.connect(to: address).wait()
  }

  package func write(_ bytes: ByteBuffer) { self.channel.writeAndFlush(bytes, promise: nil) }

  package func read(_ what: String) throws -> ByteBuffer? {
    for _ in 0..<TestTimeout.seconds {
      // Asked for again and again: TLS may read without having anything to hand on.
      self.channel.read()
      do {
        return try self.collector.inbound.wait(what, seconds: 1) { inbound -> ByteBuffer?? in
          if !inbound.bytes.isEmpty { return .some(inbound.bytes.removeFirst()) }
          return inbound.isClosed ? .some(nil) : nil
        }
      } catch is TestTimeout {
        continue
      }
    }
    throw TestTimeout(what: what)
  }

  package func close() { self.channel.close(promise: nil) }

  /// Says that no more will be sent, and goes on reading.
  package func closeOutput() throws { try self.channel.close(mode: .output).wait() }

  /// Drops the connection with a TCP reset, as a crashed peer's kernel does.
  package func abort() throws {
    let options = self.channel as? any SocketOptionProvider
    try options?.setSoLinger(linger(l_onoff: 1, l_linger: 0)).wait()
    try self.channel.close().wait()
  }
}
