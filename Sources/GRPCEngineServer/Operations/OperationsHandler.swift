internal import GRPCEngineStatistics
internal import NIOCore
internal import NIOHTTP1

/// Answers an operator's HTTP requests: figures, running calls, liveness and readiness.
///
/// All from the statistics board, without Python: right while that is busy, and for all of the
/// server's processes whichever of them is asked.
///
/// A connection has one answer under way: the next request is looked at, and more is read, when the
/// peer has taken the one before. Whoever does not read costs one answer, and after a while the
/// connection ends.
final class OperationsHandler: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart

  /// How long a process that begins to be watched may take to list its calls.
  private static let listingDelay = TimeAmount.milliseconds(400)
  /// How long it goes on listing them after somebody asked, in milliseconds.
  private static let watchTime: UInt64 = 5000

  private let board: StatisticsBoard
  private let limits: OperationsLimits
  private let isClosing: ClosingFlag
  private enum Stage {
    /// What has come of a request, and how much of its body.
    case reading(HTTPRequestHead?, bodyBytes: Int)
    /// The peer has not taken the answer yet.
    case answering
    /// Whatever comes is ignored: of requests that wait in the pipeline, it lets go as it closes.
    case closing
  }

  private var stage = Stage.reading(nil, bodyBytes: 0)
  /// Ends the connection unless what it waits for has come.
  private var timer: Scheduled<Void>?

  init(_ board: StatisticsBoard, limits: OperationsLimits, isClosing: ClosingFlag) {
    self.board = board
    self.limits = limits
    self.isClosing = isClosing
  }

  func handlerAdded(context: ChannelHandlerContext) {
    self.wait(self.limits.firstRequest, context: context)
  }

  func channelInactive(context: ChannelHandlerContext) {
    self.timer?.cancel()
    self.stage = .closing
    context.fireChannelInactive()
  }

  /// Ends the connection after so long, unless it is called again before.
  private func wait(_ time: TimeAmount, context: ChannelHandlerContext) {
    self.timer?.cancel()
    self.timer = context.eventLoop.assumeIsolated().scheduleTask(in: time) {
      self.close(context: context)
    }
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard case .reading(let head, let bodyBytes) = self.stage else { return }
    switch self.unwrapInboundIn(data) {
    case .head(let head):
      self.stage = .reading(head, bodyBytes: 0)
    case .body(let bytes):
      let bodyBytes = bodyBytes + bytes.readableBytes
      self.stage = .reading(head, bodyBytes: bodyBytes)
      if bodyBytes > self.limits.body { self.close(context: context) }
    case .end:
      guard let head else { return }
      self.stage = .answering
      self.wait(self.limits.answer, context: context)
      self.answer(head, context: context)
    }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    self.close(context: context)
  }

  private func close(context: ChannelHandlerContext) {
    self.stage = .closing
    context.close(promise: nil)
  }

  private func answer(_ request: HTTPRequestHead, context: ChannelHandlerContext) {
    guard request.method == .GET || request.method == .HEAD else {
      return self.send(.methodNotAllowed, "Only GET and HEAD.\n", to: request, context: context)
    }
    switch request.uri.prefix(while: { $0 != "?" }) {
    case "/metrics":
      let text = PrometheusText(self.board).text
      self.send(.ok, text, type: PrometheusText.contentType, to: request, context: context)
    case "/calls":
      self.sendCalls(to: request, context: context)
    case "/livez":
      self.send(.ok, "ok\n", to: request, context: context)
    case "/readyz":
      let isReady = self.board.slots.contains { $0.isLive && $0[.ready].value != 0 }
      let text = isReady ? "ok\n" : "not ready\n"
      self.send(isReady ? .ok : .serviceUnavailable, text, to: request, context: context)
    default:
      let text = "There are /metrics, /calls, /livez and /readyz.\n"
      self.send(.notFound, text, to: request, context: context)
    }
  }

  private func sendCalls(to request: HTTPRequestHead, context: ChannelHandlerContext) {
    let now = ServerStatistics.now
    let isWatched = self.board[.watchedUntil].value > now
    self.board[.watchedUntil].set(now + Self.watchTime)
    let context = NIOLoopBound(context, eventLoop: context.eventLoop)
    let handler = NIOLoopBound(self, eventLoop: context.value.eventLoop)
    let answer: @Sendable () -> Void = {
      guard context.value.channel.isActive else { return }
      handler.value.send(
        .ok,
        ProcessesJSON(handler.value.board).text,
        type: "application/json",
        to: request,
        context: context.value
      )
    }
    if isWatched {
      answer()
    } else {
      context.value.eventLoop.scheduleTask(in: Self.listingDelay, answer)
    }
  }

  private func send(
    _ status: HTTPResponseStatus,
    _ text: String,
    type: String = "text/plain; charset=utf-8",
    to request: HTTPRequestHead,
    context: ChannelHandlerContext
  ) {
    // It may have closed while the answer was being made.
    guard case .answering = self.stage else { return }
    let isLast = !request.isKeepAlive || self.isClosing.isSet
    var headers = HTTPHeaders()
    headers.add(name: "content-type", value: type)
    headers.add(name: "content-length", value: String(text.utf8.count))
    headers.add(name: "cache-control", value: "no-store")
    if isLast { headers.add(name: "connection", value: "close") }
    let head = HTTPResponseHead(version: request.version, status: status, headers: headers)
    context.write(self.wrapOutboundOut(.head(head)), promise: nil)
    let body = request.method == .HEAD ? "" : text
    let bytes = context.channel.allocator.buffer(string: body)
    // The end, which has no bytes of its own, lets the next request in: not before the peer has
    // taken this answer.
    context.writeAndFlush(self.wrapOutboundOut(.body(.byteBuffer(bytes)))).assumeIsolated()
      .whenSuccess {
        guard case .answering = self.stage else { return }
        self.stage = .reading(nil, bodyBytes: 0)
        self.wait(self.limits.nextRequest, context: context)
        context.writeAndFlush(self.wrapOutboundOut(.end(nil)), promise: nil)
        if isLast { self.close(context: context) }
      }
  }
}
