package import NIOCore

/// Gathers the small writes between two flushes into one.
///
/// An answer is three frames, each written by NIOHTTP2 as a buffer of its own. Gathered, a burst of
/// answers is one buffer and one system call, and NIOHTTP2 gets its own buffer back at once to
/// encode the next frame in.
package final class WriteCoalescer: ChannelOutboundHandler {
  package typealias OutboundIn = IOData
  package typealias OutboundOut = IOData

  /// A write of more bytes is passed on as it is: copying it would cost more than it saves.
  private static let largestGathered = 2048
  /// Gathered bytes that are passed on without waiting for a flush.
  private static let capacity = 32 * 1024

  private var gathered = ByteBuffer()
  /// What was gathered has been passed on; its storage is used again once the socket has taken it.
  private var isPassedOn = true
  private var promise: EventLoopPromise<Void>?
  private var splitter = FrameSplitter()
  private let lastStream: () -> Int

  /// - Parameter lastStream: tells the last stream of the peer's that was heard of.
  package init(lastStream: @escaping () -> Int = { Int(Int32.max) }) {
    self.lastStream = lastStream
  }

  /// What the last GOAWAY named.
  var lastAnnouncedStream: UInt32 { self.splitter.announced }

  /// Writes no frames with more content than `maximum` from now on.
  func limitFrames(to maximum: Int) { self.splitter.maximum = maximum }

  package func write(
    context: ChannelHandlerContext,
    data: NIOAny,
    promise: EventLoopPromise<Void>?
  ) {
    guard case .byteBuffer(let bytes) = self.unwrapOutboundIn(data) else {
      self.passOn(context: context)
      context.write(data, promise: promise)
      return
    }
    guard let parts = self.splitter.write(bytes, lastStream: self.lastStream()) else {
      return self.write(bytes, promise, context: context)
    }
    // None: the frame's head, which NIOHTTP2 writes without a promise.
    guard let last = parts.last else { return }
    for part in parts.dropLast() { self.write(part, nil, context: context) }
    self.write(last, promise, context: context)
  }

  private func write(
    _ bytes: ByteBuffer,
    _ promise: EventLoopPromise<Void>?,
    context: ChannelHandlerContext
  ) {
    guard bytes.readableBytes <= Self.largestGathered else {
      self.passOn(context: context)
      context.write(self.wrapOutboundOut(.byteBuffer(bytes)), promise: promise)
      return
    }
    if self.gathered.readableBytes + bytes.readableBytes > Self.capacity {
      self.passOn(context: context)
    }
    if self.isPassedOn {
      self.gathered.clear(minimumCapacity: 1024)
      self.isPassedOn = false
    }
    self.gathered.writeImmutableBuffer(bytes)
    if let promise {
      // All of them succeed or fail with the one write that they become.
      if let first = self.promise {
        first.futureResult.cascade(to: promise)
      } else {
        self.promise = promise
      }
    }
  }

  package func flush(context: ChannelHandlerContext) {
    self.passOn(context: context)
    context.flush()
  }

  package func close(
    context: ChannelHandlerContext,
    mode: CloseMode,
    promise: EventLoopPromise<Void>?
  ) {
    self.passOn(context: context)
    context.close(mode: mode, promise: promise)
  }

  /// What was gathered when the socket failed goes nowhere.
  package func handlerRemoved(context: ChannelHandlerContext) {
    self.promise?.fail(ChannelError.ioOnClosedChannel)
    self.promise = nil
  }

  private func passOn(context: ChannelHandlerContext) {
    guard !self.isPassedOn else { return }
    self.isPassedOn = true
    let promise = self.promise
    self.promise = nil
    context.write(self.wrapOutboundOut(.byteBuffer(self.gathered)), promise: promise)
  }
}
