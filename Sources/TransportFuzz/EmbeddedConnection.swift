internal import GRPCEngineTesting
package import GRPCEngineTransport
package import NIOCore
package import NIOEmbedded

/// A server connection without a socket, a thread or a clock: everything happens in the calls that
/// cause it, and time passes when a test says so.
package final class EmbeddedConnection: ByteConnection {
  package let channel: EmbeddedChannel
  package let registry: ConnectionRegistry

  package init(
    _ configuration: TransportConfiguration = TransportConfiguration(),
    acceptor: any StreamAcceptor,
    registry: ConnectionRegistry = ConnectionRegistry()
  ) throws {
    self.registry = registry
    self.channel = EmbeddedChannel()
    try Listener.configure(
      self.channel,
      credentials: nil,
      configuration: configuration,
      acceptor: acceptor,
      registry: registry
    )
    self.channel.connect(to: try SocketAddress(ipAddress: "127.0.0.1", port: 1), promise: nil)
    self.channel.embeddedEventLoop.run()
  }

  /// Lets go of the channel: what is still planned on its loop would keep both for ever.
  deinit {
    self.close()
    self.advance(by: .seconds(1))
  }

  package var isOpen: Bool { self.channel.isActive }

  package func write(_ bytes: ByteBuffer) {
    guard self.isOpen else { return }
    // What the pipeline did not handle is no news here: the connection's end shows it.
    _ = try? self.channel.writeInbound(bytes)
    self.channel.embeddedEventLoop.run()
  }

  /// - Throws: `TestTimeout` at once when there is nothing: nothing will come by waiting.
  package func read(_ what: String) throws -> ByteBuffer? {
    self.channel.embeddedEventLoop.run()
    if let output = try self.channel.readOutbound(as: IOData.self) {
      if case .byteBuffer(let bytes) = output { return bytes }
    }
    if !self.isOpen { return nil }
    throw TestTimeout(what: what)
  }

  /// Lets time pass, and whatever is due in it happen.
  package func advance(by amount: TimeAmount) {
    self.channel.embeddedEventLoop.advanceTime(by: amount)
  }

  /// The socket has room for more, or has none.
  package func setWritable(_ isWritable: Bool) {
    self.channel.isWritable = isWritable
    self.channel.pipeline.fireChannelWritabilityChanged()
    self.channel.embeddedEventLoop.run()
  }

  /// The peer goes away.
  package func close() {
    if self.isOpen { self.channel.close(promise: nil) }
    self.channel.embeddedEventLoop.run()
  }
}
