internal import GRPCEngineHTTP2
internal import GRPCEngineStatistics
internal import GRPCEngineWire
internal import NIOCore

// What the peer makes this server hold, and how much more it is let send.

extension ConnectionHandler {
  static let outOfMemory = Status(
    code: .resourceExhausted,
    details: "The client makes the server hold too much memory"
  )
  /// Output up to this is not worth a look at the socket.
  static let mostUnseenOutput = 16 << 10
  /// Differences up to this are not worth an access to memory that all connections share.
  private static let unreportedMemory = 4096

  func charge(_ share: inout MemoryAccount.Share, _ holding: MemoryAccount.Holding) {
    let (wasComplete, expected) = (share.holding.isComplete, share.expected)
    let change = self.memory.charge(&share, holding)
    self.count(change)
    // What is whole waits for this server, and not for its peer.
    if holding.isComplete, !wasComplete, !self.isTakingMemory {
      self.unreportedFlow.given += holding.came
    }
    if self.isReportDue { self.reportMemory() }
    if change < 0 || share.expected < expected, self.memory.isTight {
      self.reviewMemorySoon()
    }
  }

  private func count(_ change: Int) {
    self.unreported += change
    if change > 0 {
      self.unreportedFlow.come += change
    } else if !self.isTakingMemory {
      self.unreportedFlow.given -= change
    }
  }

  private var isReportDue: Bool {
    if abs(self.unreported) > Self.unreportedMemory { return true }
    // The pool knows of more than twice what is held: many connections that have held something once would fill
    // it with nothing.
    return self.unreported < 0 && self.holding.value < -2 * self.unreported
  }

  /// Counts what the peer makes the protocol itself hold.
  func chargeOverhead() {
    // It may be gone since the write that this comes after: nobody would take the charge back.
    guard self.context != nil else { return }
    // One that has failed is rid of it in a moment, and whoever looks for memory has to look elsewhere.
    let overhead = self.hasFailed ? 0 : self.http2.overhead + self.backlog
    guard overhead != self.overhead else { return }
    self.count(overhead - self.overhead)
    self.overhead = overhead
    if self.isReportDue { self.reportMemory() }
  }

  /// Sees how much of what was written the socket has not taken. Nothing else is held for it: the streams are told
  /// that it has left, and may be gone.
  func measureBacklog() {
    guard let context = self.context else { return }
    self.unseenOutput = 0
    let options = context.channel.syncOptions
    self.backlog = (try? options?.getOption(.bufferedWritableBytes)) ?? 0
    // One that closes takes no more writes, and looks by itself every now and then.
    guard self.backlog > 0, !self.awaitsSocket, !self.isClosing,
      let socket = self.socketContext
    else { return }
    self.awaitsSocket = true
    // Nothing is written, behind all that waits: it leaves when that has.
    let whenTaken = self.eventLoop.makePromise(of: Void.self)
    whenTaken.futureResult.assumeIsolated().whenSuccess {
      self.awaitsSocket = false
      // In a turn of its own, as this may be the middle of a write.
      self.isBacklogDue = true
      self.flushSoon()
    }
    socket.writeAndFlush(NIOAny(IOData.byteBuffer(ByteBuffer())), promise: whenTaken)
  }

  /// Whether little is kept back while the socket takes nothing: a peer could have each of many frames of some bytes
  /// wait in a buffer of its own.
  var isGathering: Bool { self.awaitsSocket && self.http2.outputCount < Self.mostUnseenOutput }

  func reviewBacklog() {
    self.isBacklogDue = false
    self.measureBacklog()
    self.chargeOverhead()
  }

  func forgetOverhead() {
    self.unreported -= self.overhead
    self.overhead = 0
    self.reportMemory()
  }

  /// Whether others hold next to nothing: a single message may always come.
  private var isOnlyHolder: Bool { self.registry.memory.isAlone(self.holding) }
  var isPoolFull: Bool { self.registry.memory.isFull && !self.isOnlyHolder }

  func reportMemory() {
    let now = self.eventLoop.now
    let isTooMuch = self.registry.memory.add(
      self.unreported,
      to: self.holding,
      self.unreportedFlow,
      now: now
    )
    self.unreported = 0
    self.unreportedFlow = MemoryPool.Flow()
    if isTooMuch { self.registry.relieve(now: now) }
  }

  func mayGrow(_ share: inout MemoryAccount.Share, by growth: Int, mayWait: Bool) -> Bool {
    let isPoolFull = self.isPoolFull
    let mayGrow = self.memory.mayGrow(
      &share,
      by: growth,
      mayWait: mayWait,
      isPoolFull: isPoolFull
    )
    if !mayGrow, share.isWaiting { self.waitForMemory(isPoolFull: isPoolFull) }
    return mayGrow
  }

  /// Lets streams begin with less where many of them could fill memory, and with more once they could not.
  func adaptStreamWindow() {
    guard self.memory.adaptStreamWindow() else { return }
    let window = self.memory.streamWindow
    self.http2.changeStreamWindow(to: window)
    for stream in self.openStreams { stream.windowChanged(to: window) }
    // Nothing comes any more of those whose window is used up now.
    for stream in self.openStreams { stream.grantWindow() }
    if !self.isReading { self.flushSoon() }
  }

  func leaveWaiting(_ share: inout MemoryAccount.Share) { self.memory.leave(&share) }

  /// Something waits for memory. Where nothing that is released will tell, it is looked for.
  ///
  /// - Parameter isPoolFull: what it has to wait for; by now others may have released enough.
  func waitForMemory(isPoolFull: Bool) {
    if self.memory.isStuck || isPoolFull { self.reviewMemorySoon() }
    self.lookAtPacesLater()
  }

  /// At the end of this turn: here streams may be in the middle of something.
  private func reviewMemorySoon() {
    self.isMemoryReviewDue = true
    self.flushSoon()
  }

  func reviewMemory() {
    self.isMemoryReviewDue = false
    self.abandon(self.memory.streamsInTheWay(self.openStreams.lazy.map(\.share)))
    for pace in MemoryAccount.Pace.allCases {
      while let id = self.memory.nextWaiting(pace), let stream = self.stream(numbered: id) {
        guard stream.askAgain() else { break }
      }
    }
    if self.memory.isWindowShut { self.keepConnectionWindowOpen() }
    // Nobody tells when others have released what this connection waits for.
    if self.memory.isTight, self.isMemoryReviewDue || self.isPoolFull { self.reviewMemoryLater() }
    self.isMemoryReviewDue = false
  }

  private func reviewMemoryLater() {
    guard !self.isMemoryReviewScheduled else { return }
    self.isMemoryReviewScheduled = true
    self.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(20)) {
      self.isMemoryReviewScheduled = false
      guard self.context != nil else { return }
      self.reviewMemory()
      self.flush()
    }
  }

  /// While something waits, sees every second whether it is for streams that do not move.
  private func lookAtPacesLater() {
    guard !self.isPaceLookScheduled else { return }
    self.isPaceLookScheduled = true
    self.eventLoop.assumeIsolated().scheduleTask(in: .seconds(1)) {
      self.isPaceLookScheduled = false
      guard self.context != nil else { return }
      let isTight = self.memory.isTight
      for stream in self.openStreams { stream.lookAtPace() }
      let shares = self.openStreams.lazy.map(\.share)
      self.abandon(self.memory.endStarvation(shares, isPoolFull: self.isPoolFull))
      self.reviewMemory()
      self.flush()
      // Once more when it no longer is, which is seen then.
      if isTight { self.lookAtPacesLater() }
    }
  }

  /// Gives back half of what the peer makes the server hold, unless that is less than `least` by now.
  ///
  /// - Returns: whether something is given, or has been since it was asked for.
  func relieve(_ least: Int) -> Bool {
    guard self.context != nil, self.holding.value >= least else { return true }
    let shares = self.openStreams.lazy.map(\.share)
    let streams = self.memory.newestHalf(shares, isOnlyHolder: self.isOnlyHolder)
    self.abandon(streams)
    let isEnding = streams.isEmpty && self.overhead > 0 && !self.isOnlyHolder
    if isEnding {
      self.fail(
        HTTP2ConnectionError(.enhanceYourCalm, "The client makes the server hold too much memory")
      )
    }
    self.flush()
    self.reportMemory()
    return isEnding || !streams.isEmpty
  }

  private func abandon(_ streams: [Int]) {
    self.isTakingMemory = true
    for id in streams { self.stream(numbered: id)?.abandon(Self.outOfMemory) }
    self.isTakingMemory = false
    if !streams.isEmpty { self.statistics[.callsShed].add(streams.count) }
  }
}
