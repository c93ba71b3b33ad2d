package import NIOCore

/// When a connection is pinged, drained and closed.
///
/// A value without I/O: every input returns what the handler has to do. Times are passed in, so
/// tests need no clock.
///
/// States: *open* → *draining* (first GOAWAY sent, its ping not yet answered) → *drained* (last
/// stream id announced) → *leaving* (the last stream has ended; what it was answered is on its way) →
/// *closed*. The two GOAWAYs are those of RFC 9113 section 6.8: the first warns, so that no stream in
/// flight is lost.
package struct ConnectionLifecycle {
  package enum Action: Hashable, Sendable {
    case none
    /// GOAWAY with the greatest stream id, then a ping whose answer proves that it was read.
    case beginDrain
    /// GOAWAY with the last accepted stream id; then close, once all has been written, when `closing` is
    /// true.
    case finishDrain(closing: Bool)
    /// Ping, and say `keepalivePingWaits`.
    case sendKeepalivePing
    /// Ask how far what was sent has come, and say `keepaliveTimedOut`.
    case askDelivery
    /// GOAWAY ENHANCE_YOUR_CALM with `too_many_pings`, then close.
    case refusePings
    /// The same for a frame or a header block that does not come whole.
    case refuseUnfinished
    case close
    /// The calls that have outlasted the grace of the age end, as at grpcio, with UNAVAILABLE; then close.
    case cutCalls
    /// Close once the last answer has been read.
    case closeWhenWritten
  }

  /// How long a drain waits for the peer to say that it has seen the first GOAWAY. What a peer sends
  /// before that is still served, so a proxy that stands still for a moment loses no call. gRPC's C
  /// core waits for 20 s.
  private static let drainPingTimeout = TimeAmount.seconds(5)

  /// How long calls may still come when it has said so: an HTTP/2 library answers pings at once, and its user may be
  /// about to make a call. One that is not served is the client's to try again, which not all do.
  package static let lastCalls = TimeAmount.milliseconds(50)

  /// How long a connection that has only just greeted is served before the first GOAWAY. One that
  /// comes with the SETTINGS finds a client with calls that wait for the connection; grpcio's client
  /// (1.85) tries those again, on a connection that it takes for a good one, until they run out of
  /// time.
  package static let welcome = TimeAmount.milliseconds(500)

  /// How long a frame, or a header block, may take to come whole: until it does, the connection is of no use, and
  /// what has come of it is held. nginx waits as long for headers.
  private static let unfinishedTimeout = TimeAmount.seconds(60)

  /// How long the peer's system may leave unanswered what it was sent before it is owed nothing: it has
  /// vanished. gRPC's C core waits as long for the answer to its last ping.
  private static let longestSilence = TimeAmount.seconds(20)
  /// How many segments it may leave unanswered meanwhile: the last one's answer may just be on its way. To a
  /// peer that is there and does not read, the kernel sends one every two minutes.
  private static let mostUnanswered = 1

  /// Whether the socket of a connection that is *leaving* has to stay open for what was sent: the kernel may
  /// hold megabytes of an answer, and would drop them for the first frame that the peer sends to a closed
  /// socket. Who never reads is ended by keepalive, by the grace, or with the server.
  package static func isOwed(_ delivery: Delivery) -> Bool {
    if delivery.isOutputClosed, delivery.isAcknowledged ?? true { return false }
    return delivery.unanswered <= Self.mostUnanswered || delivery.silence < Self.longestSilence
  }

  /// A keepalive ping that has not been answered.
  private struct KeepalivePing {
    var waitsSince: NIODeadline
    /// Bytes sent on the connection before it.
    var sentBefore = 0
    /// How many of them the peer's system had received when that was last looked at.
    var received = 0
  }

  private enum State { case open, draining, drained, leaving, closed }

  private let configuration: TransportConfiguration
  private var state = State.open
  private var openStreams = 0

  private var handshakeDeadline: NIODeadline
  private var establishedAt: NIODeadline?
  private var isEstablished: Bool { self.establishedAt != nil }
  private var hasOpenedStreams = false
  /// Whether to drain as soon as the peer has greeted, and has been served for a moment.
  package private(set) var isDrainPending = false
  private let ageDeadline: NIODeadline?
  private var graceDeadline: NIODeadline?
  private var drainDeadline: NIODeadline?
  private var welcomeDeadline: NIODeadline?
  private var idleSince: NIODeadline
  private var lastRead: NIODeadline
  private var keepalivePing: KeepalivePing?
  /// What has come in part, and since when.
  private var unfinished: (which: Int, since: NIODeadline)?

  private var lastPeerPing: NIODeadline?
  private var sentSinceLastPeerPing = false
  private var pingStrikes = 0

  /// - Parameter ageSpread: a number from -1 to 1 that moves the age limit by up to 10 %.
  package init(configuration: TransportConfiguration, now: NIODeadline, ageSpread: Double) {
    self.configuration = configuration
    self.handshakeDeadline = now + configuration.handshakeTimeout
    self.ageDeadline = configuration.maxConnectionAge.map { age in
      // Half of what the clock can count is 146 years: as good as never, and room for the spread.
      let nanoseconds = Double(min(age.nanoseconds, .max / 2))
      return now + .nanoseconds(Int64(nanoseconds * (1 + 0.1 * ageSpread)))
    }
    self.idleSince = now
    self.lastRead = now
  }

  /// Whether a new stream is still served.
  package var acceptsStreams: Bool { self.state == .open || self.state == .draining }

  /// The peer's SETTINGS came.
  ///
  /// - Returns: whether they are its first, which complete the handshake.
  package mutating func established(now: NIODeadline) -> Bool {
    guard !self.isEstablished else { return false }
    self.establishedAt = now
    return true
  }

  /// Something has been read.
  ///
  /// - Parameter unfinished: which frame or header block has come in part; `nil` for none.
  /// - Returns: whether `nextDeadline` may be sooner than before.
  package mutating func read(now: NIODeadline, unfinished: Int? = nil) -> Bool {
    self.lastRead = now
    self.keepalivePing = nil
    guard unfinished != self.unfinished?.which else { return false }
    self.unfinished = unfinished.map { ($0, now) }
    return unfinished != nil
  }

  /// DATA, HEADERS or WINDOW_UPDATE leaves; a peer may ping once more after that without a strike.
  /// What waits for the peer's windows has not left: a peer that measures its bandwidth pings as data
  /// comes, long after one large answer was handed over.
  package mutating func sent() { self.sentSinceLastPeerPing = true }

  package mutating func streamOpened() {
    self.openStreams += 1
    self.hasOpenedStreams = true
  }

  package mutating func streamClosed(now: NIODeadline) -> Action {
    self.openStreams -= 1
    guard self.openStreams == 0 else { return .none }
    self.idleSince = now
    if self.state == .drained {
      self.state = .leaving
      return .closeWhenWritten
    }
    return .none
  }

  /// Drains the connection: calls in flight go on, new ones go elsewhere.
  ///
  /// A peer that has not greeted yet may do so for 3 s more, and is told then: its first calls may
  /// be on their way, and to lose the connection now would fail them. One that has only just greeted
  /// and has not made a call is told after a moment (`welcome`).
  package mutating func drain(now: NIODeadline) -> Action {
    guard self.state == .open else { return .none }
    guard let establishedAt = self.establishedAt else {
      self.isDrainPending = true
      self.handshakeDeadline = min(self.handshakeDeadline, now + .seconds(3))
      return .none
    }
    if !self.hasOpenedStreams, now < establishedAt + Self.welcome {
      self.isDrainPending = true
      self.welcomeDeadline = establishedAt + Self.welcome
      return .none
    }
    self.isDrainPending = false
    self.welcomeDeadline = nil
    self.state = .draining
    // A peer that never answers the ping must not keep the drain from ending.
    self.drainDeadline = now + Self.drainPingTimeout
    return .beginDrain
  }

  /// The peer has seen the first GOAWAY. Calls that it began just then are served, too, until the second one.
  package mutating func drainPingAnswered(now: NIODeadline) {
    guard self.state == .draining, let deadline = self.drainDeadline else { return }
    self.drainDeadline = min(deadline, now + Self.lastCalls)
  }

  private mutating func finishDrain() -> Action {
    self.drainDeadline = nil
    if self.openStreams == 0 {
      self.state = .leaving
      return .finishDrain(closing: true)
    }
    self.state = .drained
    return .finishDrain(closing: false)
  }

  /// A ping of the peer. gRFC A8 (client-side keepalive): pings that come sooner than allowed,
  /// with nothing sent in between, are strikes.
  package mutating func receivedPing(now: NIODeadline) -> Action {
    let keepalive = self.configuration.keepalive
    guard keepalive.maxPingStrikes > 0, self.state != .closed, self.state != .leaving else {
      return .none
    }
    defer {
      self.lastPeerPing = now
      self.sentSinceLastPeerPing = false
    }
    if self.sentSinceLastPeerPing {
      self.pingStrikes = 0
      return .none
    }
    let idleInterval = keepalive.permitWithoutCalls ? keepalive.minReceivedPingInterval : .hours(2)
    let allowed = self.openStreams == 0 ? idleInterval : keepalive.minReceivedPingInterval
    if let last = self.lastPeerPing, now - last < allowed {
      self.pingStrikes += 1
      if self.pingStrikes > keepalive.maxPingStrikes {
        self.state = .closed
        return .refusePings
      }
    }
    return .none
  }

  /// The time at which `timerFired` has to be called next.
  package var nextDeadline: NIODeadline? {
    var next: NIODeadline?
    func consider(_ deadline: NIODeadline?) {
      guard let deadline else { return }
      next = next.map { min($0, deadline) } ?? deadline
    }
    guard self.state != .closed else { return nil }
    if !self.isEstablished { consider(self.handshakeDeadline) }
    consider(self.drainDeadline)
    consider(self.welcomeDeadline)
    consider(self.graceDeadline)
    consider(self.pendingAge)
    consider(self.unfinishedDeadline)
    if self.state == .open, !self.isDrainPending {
      if self.openStreams == 0 {
        consider(self.configuration.maxConnectionIdle.map { self.idleSince + $0 })
      }
    }
    consider(self.keepaliveDeadline)
    return next
  }

  /// The age at which something is still to begin: the drain, or where that has begun for another reason,
  /// the grace.
  private var pendingAge: NIODeadline? {
    guard !self.isDrainPending, self.graceDeadline == nil else { return nil }
    switch self.state {
    case .open: return self.ageDeadline
    case .draining, .drained, .leaving:
      return self.configuration.maxConnectionAgeGrace == nil ? nil : self.ageDeadline
    case .closed: return nil
    }
  }

  private var unfinishedDeadline: NIODeadline? {
    // What a peer says to a connection that leaves is not read any more, the rest of a frame neither.
    guard self.state != .leaving else { return nil }
    return self.unfinished.map { $0.since + Self.unfinishedTimeout }
  }

  private var keepaliveDeadline: NIODeadline? {
    let keepalive = self.configuration.keepalive
    guard self.isEstablished, let interval = keepalive.interval else { return nil }
    if let ping = self.keepalivePing { return ping.waitsSince + keepalive.timeout }
    return self.lastRead + interval
  }

  package mutating func timerFired(now: NIODeadline) -> Action {
    switch self.state {
    case .closed:
      return .none
    case .open, .draining, .drained, .leaving:
      break
    }
    if !self.isEstablished, now >= self.handshakeDeadline { return self.close() }
    if let deadline = self.unfinishedDeadline, now >= deadline {
      self.state = .closed
      return .refuseUnfinished
    }
    if let deadline = self.welcomeDeadline, now >= deadline { return self.drain(now: now) }
    if let deadline = self.drainDeadline, now >= deadline { return self.finishDrain() }
    if let deadline = self.graceDeadline, now >= deadline {
      self.state = .closed
      return .cutCalls
    }
    if let deadline = self.pendingAge, now >= deadline {
      self.graceDeadline = self.configuration.maxConnectionAgeGrace.map { now + $0 }
      return self.drain(now: now)
    }
    if self.state == .open, !self.isDrainPending {
      if self.openStreams == 0, let idle = self.configuration.maxConnectionIdle,
        now >= self.idleSince + idle
      {
        return self.drain(now: now)
      }
    }
    if let deadline = self.keepaliveDeadline, now >= deadline {
      if self.keepalivePing != nil { return .askDelivery }
      let isAsked = self.openStreams > 0 || self.state == .leaving
      if isAsked || self.configuration.keepalive.permitWithoutCalls {
        self.keepalivePing = KeepalivePing(waitsSince: now)
        return .sendKeepalivePing
      }
      self.lastRead = now
    }
    return .none
  }

  // MARK: Keepalive

  /// The ping is sent behind what the peer has not received yet.
  ///
  /// - Parameters:
  ///   - sent: bytes sent on the connection before it.
  ///   - received: how many of them the peer's system has; `nil` if that can't be told.
  package mutating func keepalivePingWaits(behind sent: Int, received: Int?) {
    guard let received else { return }
    self.keepalivePing?.sentBefore = sent
    self.keepalivePing?.received = received
  }

  /// There is no answer to the ping in time. A peer on a slow line has perhaps not received it yet: as long as
  /// it takes in what was sent before, it is alive. What it says itself is told by `read`.
  ///
  /// - Parameter received: as for `keepalivePingWaits`.
  package mutating func keepaliveTimedOut(received: Int?, now: NIODeadline) -> Action {
    guard self.state != .closed, let ping = self.keepalivePing else { return .none }
    guard let received, ping.received < ping.sentBefore, received > ping.received else {
      return self.close()
    }
    self.keepalivePing?.received = received
    self.keepalivePing?.waitsSince = now
    return .none
  }

  private mutating func close() -> Action {
    self.state = .closed
    return .close
  }
}
