internal import Glibc
package import NIOCore

/// Sits in a listening channel and lets it accept while there is room.
///
/// It is asked before each read, at which the channel accepts up to `maxMessagesPerRead` connections:
/// one where their number is limited, so that the limit holds. With several listeners there may be one
/// more for each that accepts in the same instant.
package final class AcceptGate: ChannelDuplexHandler {
  package typealias InboundIn = any Channel
  package typealias OutboundIn = Never

  /// After how long a listener looks again whether there are descriptors: who frees them, a servicer
  /// that closes a file for example, tells nobody.
  private static let pause = TimeAmount.milliseconds(50)

  private let limit: ConnectionLimit?
  private let descriptors: DescriptorWatch
  private let isForOperators: Bool

  /// - Parameters:
  ///   - limit: how many connections there may be; `nil` for any number.
  ///   - descriptors: whether there are file descriptors for them.
  ///   - isForOperators: whether these connections may have half of the reserve, so that a server
  ///     whose clients have taken all the rest can still be looked at.
  package init(
    _ limit: ConnectionLimit?,
    descriptors: DescriptorWatch,
    isForOperators: Bool = false
  ) {
    self.limit = limit
    self.descriptors = descriptors
    self.isForOperators = isForOperators
  }

  package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    self.limit?.count(self.unwrapInboundIn(data))
    context.fireChannelRead(data)
  }

  package func read(context: ChannelHandlerContext) {
    guard context.channel.isActive else { return }
    let eventLoop = context.eventLoop
    let again = NIOLoopBound((self, context), eventLoop: eventLoop)
    let hasRoom = self.limit?.hasRoom {
      eventLoop.execute {
        let (gate, context) = again.value
        gate.read(context: context)
      }
    }
    guard hasRoom ?? true else { return }
    guard self.descriptors.mayOpen(isForOperators: self.isForOperators) else {
      eventLoop.scheduleTask(in: Self.pause) {
        let (gate, context) = again.value
        gate.read(context: context)
      }
      return
    }
    context.read()
  }

  package func errorCaught(context: ChannelHandlerContext, error: any Error) {
    guard let code = (error as? IOError)?.errnoCode, Self.isShortage(code) else {
      return context.fireErrorCaught(error)
    }
    self.descriptors.failed(code)
    // The channel still waits for the connection that it could not accept, and would try again in
    // each turn of the loop. Only this option makes it look away.
    let options = context.channel.syncOptions
    try? options?.setOption(.autoRead, value: false)
    let channel = NIOLoopBound(context.channel, eventLoop: context.eventLoop)
    context.eventLoop.scheduleTask(in: Self.pause) {
      guard channel.value.isActive else { return }
      try? channel.value.syncOptions?.setOption(.autoRead, value: true)
    }
  }

  /// Whether accept(2) failed for what this machine lacks at the moment.
  private static func isShortage(_ code: CInt) -> Bool {
    [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(code)
  }
}
