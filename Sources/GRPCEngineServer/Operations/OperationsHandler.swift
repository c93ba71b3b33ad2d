internal import GRPCEngineStatistics
internal import NIOCore
internal import NIOHTTP1

/// Answers an operator's HTTP requests: figures, running calls, liveness and readiness.
///
/// All from the statistics board, on the event loop: right while Python is busy, and for all of the
/// server's processes whichever of them is asked.
final class OperationsHandler: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart

  /// How long a process that begins to be watched may take to list its calls.
  private static let listingDelay = TimeAmount.milliseconds(400)
  /// How long it goes on listing them after somebody asked, in milliseconds.
  private static let watchTime: UInt64 = 5000

  private let board: StatisticsBoard
  private var request: HTTPRequestHead?

  init(_ board: StatisticsBoard) { self.board = board }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch self.unwrapInboundIn(data) {
    case .head(let head): self.request = head
    case .body: break
    case .end:
      guard let request = self.request else { return }
      self.request = nil
      self.answer(request, context: context)
    }
  }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if event is IdleStateHandler.IdleStateEvent { context.close(promise: nil) }
    context.fireUserInboundEventTriggered(event)
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
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
    var headers = HTTPHeaders()
    headers.add(name: "content-type", value: type)
    headers.add(name: "content-length", value: String(text.utf8.count))
    headers.add(name: "cache-control", value: "no-store")
    if !request.isKeepAlive { headers.add(name: "connection", value: "close") }
    let head = HTTPResponseHead(version: request.version, status: status, headers: headers)
    context.write(self.wrapOutboundOut(.head(head)), promise: nil)
    if request.method != .HEAD {
      let body = context.channel.allocator.buffer(string: text)
      context.write(self.wrapOutboundOut(.body(.byteBuffer(body))), promise: nil)
    }
    if request.isKeepAlive {
      context.writeAndFlush(self.wrapOutboundOut(.end(nil)), promise: nil)
    } else {
      let channel = context.channel
      context.writeAndFlush(self.wrapOutboundOut(.end(nil))).assumeIsolated().whenComplete { _ in
        channel.close(promise: nil)
      }
    }
  }
}
