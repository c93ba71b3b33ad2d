import GRPCEngineTransport
import NIOCore
import Testing

struct ConnectionLifecycleTests {
  private static let start = NIODeadline.uptimeNanoseconds(1_000_000_000_000)
  private static let welcome = ConnectionLifecycle.welcome

  /// A life cycle whose peer has greeted a second ago, unless said otherwise.
  private func make(
    isEstablished: Bool = true,
    ageSpread: Double = 0,
    _ change: (inout TransportConfiguration) -> Void = { _ in }
  ) -> ConnectionLifecycle {
    var configuration = TransportConfiguration()
    configuration.keepalive.interval = nil
    change(&configuration)
    var lifecycle = ConnectionLifecycle(
      configuration: configuration,
      now: Self.start,
      ageSpread: ageSpread
    )
    if isEstablished { _ = lifecycle.established(now: Self.start - .seconds(1)) }
    return lifecycle
  }

  private func after(_ seconds: Int64) -> NIODeadline { Self.start + .seconds(seconds) }

  // MARK: Handshake

  @Test("Only the first settings of a peer complete the handshake")
  func established() {
    var lifecycle = self.make(isEstablished: false)
    for isFirst in [true, false] { #expect(lifecycle.established(now: Self.start) == isFirst) }
  }

  @Test("A peer that does not greet in time is closed")
  func handshakeTimeout() {
    var lifecycle = self.make(isEstablished: false) { $0.handshakeTimeout = .seconds(5) }
    #expect(lifecycle.nextDeadline == self.after(5))
    #expect(lifecycle.timerFired(now: self.after(4)) == .none)
    #expect(lifecycle.timerFired(now: self.after(5)) == .close)
    #expect(lifecycle.nextDeadline == nil)
    #expect(lifecycle.timerFired(now: self.after(6)) == .none)
    #expect(!lifecycle.acceptsStreams)
  }

  @Test("A peer that has greeted is not held to the handshake's time")
  func handshakeInTime() {
    var lifecycle = self.make { $0.handshakeTimeout = .seconds(5) }
    #expect(lifecycle.nextDeadline == nil)
    #expect(lifecycle.timerFired(now: self.after(5)) == .none)
    #expect(lifecycle.acceptsStreams)
  }

  @Test("Pings that are refused are refused once")
  func pingsAfterTheRefusal() {
    var lifecycle = self.make()
    lifecycle.streamOpened()
    for _ in 0..<3 { #expect(lifecycle.receivedPing(now: Self.start) == .none) }
    #expect(lifecycle.receivedPing(now: Self.start) == .refusePings)
    for _ in 0..<3 { #expect(lifecycle.receivedPing(now: Self.start) == .none) }
  }

  @Test("What begins to come is to come whole in a minute, however much else is read meanwhile")
  func unfinished() {
    var lifecycle = self.make { $0.maxConnectionIdle = .seconds(1000) }
    #expect(lifecycle.read(now: self.after(10), unfinished: 7) == true)
    #expect(lifecycle.nextDeadline == self.after(70))
    #expect(lifecycle.read(now: self.after(69), unfinished: 7) == false)
    #expect(lifecycle.timerFired(now: self.after(69)) == .none)
    #expect(lifecycle.read(now: self.after(69), unfinished: 8) == true, "the next has its own time")
    #expect(lifecycle.timerFired(now: self.after(70)) == .none)
    #expect(lifecycle.read(now: self.after(100)) == false)
    #expect(lifecycle.nextDeadline == self.after(1000))
    #expect(lifecycle.read(now: self.after(200), unfinished: -1) == true)
    #expect(lifecycle.timerFired(now: self.after(260)) == .refuseUnfinished)
    #expect(lifecycle.nextDeadline == nil)
  }

  @Test("What is not read any more need not come whole")
  func unfinishedFarewell() {
    var lifecycle = self.make()
    lifecycle.streamOpened()
    #expect(lifecycle.drain(now: self.after(1)) == .beginDrain)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    #expect(lifecycle.read(now: self.after(2), unfinished: 7) == true)
    #expect(lifecycle.streamClosed(now: self.after(3)) == .closeWhenWritten)
    #expect(lifecycle.nextDeadline == nil)
    #expect(lifecycle.timerFired(now: self.after(100)) == .none)
  }

  // MARK: Farewell

  @Test("A peer is owed its socket until all is taken, by its system where that can be told")
  func owed() {
    for (isOutputClosed, isAcknowledged, isOwed) in [
      (false, Bool?.none, true), (true, nil, false), (true, true, false), (true, false, true),
      (false, true, true),
    ] {
      let delivery = Delivery(isOutputClosed: isOutputClosed, isAcknowledged: isAcknowledged)
      #expect(ConnectionLifecycle.isOwed(delivery) == isOwed)
    }
  }

  @Test(
    "A peer that has vanished is owed nothing, one that does not read is",
    arguments: [
      (9, TimeAmount.milliseconds(19_999), true), (1, .seconds(90), true),
      (2, .seconds(20), false), (9, .seconds(90), false),
    ],
    [false, true]
  )
  func vanished(_ case: (unanswered: Int, silence: TimeAmount, isOwed: Bool), isClosed: Bool) {
    let delivery = Delivery(
      isOutputClosed: isClosed,
      isAcknowledged: false,
      unanswered: `case`.unanswered,
      silence: `case`.silence
    )
    #expect(ConnectionLifecycle.isOwed(delivery) == `case`.isOwed)
  }

  // MARK: Drain

  @Test("A drain warns, waits for the ping's answer, names the last stream and closes with it")
  func drain() {
    var lifecycle = self.make()
    lifecycle.streamOpened()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    #expect(lifecycle.acceptsStreams, "streams that the peer had opened before it knew are served")
    lifecycle.streamOpened()
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    #expect(!lifecycle.acceptsStreams)
    #expect(lifecycle.streamClosed(now: self.after(1)) == .none)
    #expect(lifecycle.streamClosed(now: self.after(2)) == .closeWhenWritten)
    #expect(lifecycle.nextDeadline == nil)
  }

  @Test("Calls that come just after the drain's ping is answered are served")
  func lastCalls() {
    var lifecycle = self.make()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    lifecycle.drainPingAnswered(now: self.after(1))
    #expect(lifecycle.acceptsStreams)
    let end = self.after(1) + ConnectionLifecycle.lastCalls
    #expect(lifecycle.nextDeadline == end)
    lifecycle.drainPingAnswered(now: self.after(1) + .milliseconds(1))
    #expect(lifecycle.nextDeadline == end, "who pings again gains nothing")
    lifecycle.streamOpened()
    #expect(lifecycle.timerFired(now: end - .nanoseconds(1)) == .none)
    #expect(lifecycle.timerFired(now: end) == .finishDrain(closing: false))
    #expect(!lifecycle.acceptsStreams)
  }

  @Test("A ping that is answered late adds nothing to the five seconds")
  func lateAnswer() {
    var lifecycle = self.make()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    lifecycle.drainPingAnswered(now: self.after(5) - .milliseconds(1))
    #expect(lifecycle.nextDeadline == self.after(5))
  }

  @Test("A drain without calls closes as soon as the ping is answered")
  func drainIdle() {
    var lifecycle = self.make()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: true))
    #expect(lifecycle.finishDrain() == .none)
  }

  @Test("The last call may end before the drain's ping is answered")
  func drainWhileCallEnds() {
    var lifecycle = self.make()
    lifecycle.streamOpened()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    #expect(lifecycle.streamClosed(now: self.after(1)) == .none)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: true))
  }

  @Test("A peer that does not answer the drain's ping gets five seconds")
  func drainPingUnanswered() {
    var lifecycle = self.make()
    lifecycle.streamOpened()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    #expect(lifecycle.nextDeadline == self.after(5))
    #expect(lifecycle.timerFired(now: self.after(5) - .nanoseconds(1)) == .none)
    #expect(lifecycle.timerFired(now: self.after(5)) == .finishDrain(closing: false))
    #expect(lifecycle.finishDrain() == .none)
    #expect(lifecycle.streamClosed(now: self.after(7)) == .closeWhenWritten)
  }

  @Test("A drain begins once")
  func drainTwice() {
    var lifecycle = self.make()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    #expect(lifecycle.drain(now: Self.start + .milliseconds(500)) == .none)
    #expect(lifecycle.nextDeadline == self.after(5))
  }

  @Test("A connection that has not greeted may do so for a while, and is drained then")
  func drainBeforeHandshake() {
    var lifecycle = self.make(isEstablished: false)
    #expect(lifecycle.drain(now: Self.start) == .none)
    #expect(lifecycle.isDrainPending)
    #expect(lifecycle.nextDeadline == self.after(3))
    #expect(lifecycle.drain(now: self.after(1)) == .none)
    #expect(lifecycle.nextDeadline == self.after(3))
    _ = lifecycle.established(now: self.after(2))
    #expect(lifecycle.drain(now: self.after(2)) == .none)
    #expect(lifecycle.isDrainPending)
    #expect(lifecycle.nextDeadline == self.after(2) + Self.welcome)
    #expect(lifecycle.timerFired(now: self.after(2) + Self.welcome) == .beginDrain)
    #expect(!lifecycle.isDrainPending)
    #expect(lifecycle.acceptsStreams)
  }

  @Test("A connection that has just greeted is served for a moment before it is sent away")
  func drainRightAfterHandshake() {
    var lifecycle = self.make(isEstablished: false) {
      $0.maxConnectionAge = .milliseconds(600)
      $0.maxConnectionIdle = .milliseconds(100)
    }
    _ = lifecycle.established(now: Self.start)
    #expect(lifecycle.drain(now: Self.start + .milliseconds(10)) == .none)
    #expect(lifecycle.nextDeadline == Self.start + Self.welcome, "not its idle time")
    let moment = Self.start + Self.welcome - .nanoseconds(1)
    #expect(lifecycle.timerFired(now: moment) == .none)
    lifecycle.streamOpened()
    #expect(lifecycle.acceptsStreams)
    #expect(lifecycle.timerFired(now: Self.start + Self.welcome) == .beginDrain)
    #expect(lifecycle.drain(now: Self.start + Self.welcome) == .none)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    #expect(lifecycle.streamClosed(now: self.after(1)) == .closeWhenWritten)
    #expect(lifecycle.nextDeadline == nil)
  }

  @Test("A connection that has made a call need not be welcomed")
  func drainAfterFirstCall() {
    var lifecycle = self.make(isEstablished: false)
    _ = lifecycle.established(now: Self.start)
    lifecycle.streamOpened()
    #expect(lifecycle.streamClosed(now: Self.start) == .none)
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
  }

  @Test("A connection that greeted a welcome ago is drained at once")
  func drainAfterWelcome() {
    for isOver in [false, true] {
      var lifecycle = self.make(isEstablished: false)
      _ = lifecycle.established(now: Self.start)
      let moment = Self.start + Self.welcome - (isOver ? .zero : .nanoseconds(1))
      #expect(lifecycle.drain(now: moment) == (isOver ? .beginDrain : .none))
    }
  }

  @Test("A connection that is drained before it has greeted, and does not, is closed")
  func drainWithoutHandshake() {
    var lifecycle = self.make(isEstablished: false) { $0.maxConnectionAge = .seconds(1) }
    #expect(lifecycle.drain(now: Self.start) == .none)
    #expect(lifecycle.nextDeadline == self.after(3), "its age does not matter any more")
    #expect(lifecycle.timerFired(now: self.after(2)) == .none)
    #expect(lifecycle.timerFired(now: self.after(3)) == .close)
    #expect(lifecycle.drain(now: self.after(3)) == .none)
    #expect(lifecycle.nextDeadline == nil)
  }

  @Test("A drain does not lengthen the time for the handshake")
  func drainLateInHandshake() {
    var lifecycle = self.make(isEstablished: false) { $0.handshakeTimeout = .seconds(5) }
    #expect(lifecycle.drain(now: self.after(4)) == .none)
    #expect(lifecycle.nextDeadline == self.after(5))
  }

  @Test("A ping's answer that no drain asked for changes nothing")
  func strayPingAnswer() {
    var lifecycle = self.make()
    #expect(lifecycle.finishDrain() == .none)
    #expect(lifecycle.acceptsStreams)
  }

  // MARK: Idle

  @Test("A connection without calls is drained when its idle time is over")
  func idle() {
    var lifecycle = self.make { $0.maxConnectionIdle = .seconds(10) }
    #expect(lifecycle.nextDeadline == self.after(10))
    #expect(lifecycle.timerFired(now: self.after(9)) == .none)
    #expect(lifecycle.timerFired(now: self.after(10)) == .beginDrain)
  }

  @Test("Idle time stands still during calls and begins anew after the last")
  func idleAfterCalls() {
    var lifecycle = self.make { $0.maxConnectionIdle = .seconds(10) }
    lifecycle.streamOpened()
    lifecycle.streamOpened()
    #expect(lifecycle.nextDeadline == nil)
    #expect(lifecycle.timerFired(now: self.after(20)) == .none)
    #expect(lifecycle.streamClosed(now: self.after(20)) == .none)
    #expect(lifecycle.nextDeadline == nil)
    #expect(lifecycle.streamClosed(now: self.after(25)) == .none)
    #expect(lifecycle.nextDeadline == self.after(35))
    #expect(lifecycle.timerFired(now: self.after(35)) == .beginDrain)
  }

  @Test("Without a limit a connection may be idle for ever")
  func idleForEver() {
    var lifecycle = self.make()
    #expect(lifecycle.nextDeadline == nil)
    #expect(lifecycle.timerFired(now: self.after(1_000_000)) == .none)
  }

  // MARK: Age

  @Test("A connection is drained at its age, calls or not")
  func age() {
    var lifecycle = self.make { $0.maxConnectionAge = .seconds(100) }
    lifecycle.streamOpened()
    #expect(lifecycle.nextDeadline == self.after(100))
    #expect(lifecycle.timerFired(now: self.after(99)) == .none)
    #expect(lifecycle.timerFired(now: self.after(100)) == .beginDrain)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    #expect(lifecycle.timerFired(now: self.after(100_000)) == .none, "calls may run for ever")
  }

  /// A connection with one call that has been drained for its age of 100 s, with a grace of 7 s.
  private func makeAged() -> ConnectionLifecycle {
    var lifecycle = self.make {
      $0.maxConnectionAge = .seconds(100)
      $0.maxConnectionAgeGrace = .seconds(7)
    }
    lifecycle.streamOpened()
    #expect(lifecycle.timerFired(now: self.after(100)) == .beginDrain)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    return lifecycle
  }

  @Test("Calls that outlast the grace after the age are cut off")
  func ageGrace() {
    var lifecycle = self.makeAged()
    #expect(lifecycle.nextDeadline == self.after(107))
    #expect(lifecycle.timerFired(now: self.after(106)) == .none)
    #expect(lifecycle.timerFired(now: self.after(107)) == .cutCalls)
    #expect(lifecycle.nextDeadline == nil)
  }

  @Test("A connection that was idle has its age and grace too, if a call came before it knew")
  func ageAfterIdle() {
    var lifecycle = self.make {
      $0.maxConnectionIdle = .seconds(10)
      $0.maxConnectionAge = .seconds(100)
      $0.maxConnectionAgeGrace = .seconds(7)
    }
    #expect(lifecycle.timerFired(now: self.after(10)) == .beginDrain)
    lifecycle.streamOpened()
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    #expect(lifecycle.nextDeadline == self.after(100))
    #expect(lifecycle.timerFired(now: self.after(100)) == .none)
    #expect(lifecycle.nextDeadline == self.after(107))
    #expect(lifecycle.timerFired(now: self.after(107)) == .cutCalls)
  }

  @Test("A last answer that nobody reads keeps the connection no longer than calls would")
  func unreadAnswer() {
    var lifecycle = self.makeAged()
    #expect(lifecycle.streamClosed(now: self.after(101)) == .closeWhenWritten)
    #expect(lifecycle.nextDeadline == self.after(107))
    #expect(lifecycle.timerFired(now: self.after(107)) == .cutCalls)

    // Nor does the answer of one that was drained for another reason, before it was of age.
    var idle = self.make {
      $0.maxConnectionIdle = .seconds(10)
      $0.maxConnectionAge = .seconds(100)
      $0.maxConnectionAgeGrace = .seconds(7)
    }
    #expect(idle.timerFired(now: self.after(10)) == .beginDrain)
    #expect(idle.finishDrain() == .finishDrain(closing: true))
    #expect(idle.nextDeadline == self.after(100))
    #expect(idle.timerFired(now: self.after(100)) == .none)
    #expect(idle.timerFired(now: self.after(107)) == .cutCalls)

    var pinging = self.make { $0.keepalive.interval = .seconds(30) }
    pinging.streamOpened()
    #expect(pinging.drain(now: Self.start) == .beginDrain)
    #expect(pinging.streamClosed(now: self.after(1)) == .none)
    #expect(pinging.finishDrain() == .finishDrain(closing: true))
    #expect(pinging.timerFired(now: self.after(30)) == .sendKeepalivePing)
    #expect(pinging.timerFired(now: self.after(60)) == .askDelivery)
  }

  @Test("A drain for another reason has no grace to keep")
  func drainHasNoGrace() {
    var lifecycle = self.make { $0.maxConnectionAgeGrace = .seconds(7) }
    lifecycle.streamOpened()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    #expect(lifecycle.nextDeadline == nil)
  }

  @Test(
    "The age is spread by a tenth to both sides",
    arguments: [(-1.0, Int64(90)), (-0.5, 95), (0, 100), (1, 110)]
  )
  func ageSpread(spread: Double, seconds: Int64) {
    let lifecycle = self.make(ageSpread: spread) { $0.maxConnectionAge = .seconds(100) }
    #expect(lifecycle.nextDeadline == self.after(seconds))
  }

  @Test("An age beyond what the clock can count is one that never comes")
  func endlessAge() {
    var lifecycle = self.make(ageSpread: 1) { $0.maxConnectionAge = .nanoseconds(.max) }
    #expect(lifecycle.timerFired(now: self.after(1_000_000)) == .none)
  }

  // MARK: Keepalive

  private func keepalive(withoutCalls: Bool = false) -> ConnectionLifecycle {
    self.make {
      $0.keepalive.interval = .seconds(10)
      $0.keepalive.timeout = .seconds(3)
      $0.keepalive.permitWithoutCalls = withoutCalls
    }
  }

  @Test("A silent peer is pinged, and closed when it does not answer")
  func keepaliveTimeout() {
    var lifecycle = self.keepalive()
    lifecycle.streamOpened()
    #expect(lifecycle.nextDeadline == self.after(10))
    #expect(lifecycle.timerFired(now: self.after(10)) == .sendKeepalivePing)
    #expect(lifecycle.nextDeadline == self.after(13))
    #expect(lifecycle.timerFired(now: self.after(12)) == .none)
    #expect(lifecycle.timerFired(now: self.after(13)) == .askDelivery)
    #expect(lifecycle.keepaliveTimedOut(received: nil, now: self.after(13)) == .close)
    #expect(lifecycle.keepaliveTimedOut(received: nil, now: self.after(13)) == .none)
  }

  /// A connection whose ping waits behind `sent` bytes, of which the peer's system has 1000.
  private func pinged(behind sent: Int) -> ConnectionLifecycle {
    var lifecycle = self.keepalive()
    lifecycle.streamOpened()
    #expect(lifecycle.timerFired(now: self.after(10)) == .sendKeepalivePing)
    lifecycle.keepalivePingWaits(behind: sent, received: 1000)
    return lifecycle
  }

  @Test("A peer that takes in what was sent before a ping has time until it has taken in that")
  func keepaliveBehindAnswer() {
    var lifecycle = self.pinged(behind: 5000)
    for (index, received) in [3000, 3001, 6000].enumerated() {
      let now = self.after(13 + 3 * Int64(index))
      #expect(lifecycle.timerFired(now: now) == .askDelivery)
      #expect(lifecycle.keepaliveTimedOut(received: received, now: now) == .none)
      #expect(lifecycle.nextDeadline == now + .seconds(3))
    }
    #expect(lifecycle.timerFired(now: self.after(22)) == .askDelivery)
    #expect(lifecycle.keepaliveTimedOut(received: 9000, now: self.after(22)) == .close)
  }

  @Test(
    "A peer that takes in nothing, or has had the ping, is closed",
    arguments: [(5000, 1000), (1000, 1017), (1000, 2000)]
  )
  func keepaliveOfOneThatHangs(sent: Int, received: Int) {
    var lifecycle = self.pinged(behind: sent)
    #expect(lifecycle.timerFired(now: self.after(13)) == .askDelivery)
    #expect(lifecycle.keepaliveTimedOut(received: received, now: self.after(13)) == .close)
  }

  @Test("A peer that answers while it is looked at is not closed")
  func keepaliveAnsweredMeanwhile() {
    var lifecycle = self.pinged(behind: 5000)
    #expect(lifecycle.timerFired(now: self.after(13)) == .askDelivery)
    _ = lifecycle.read(now: self.after(13))
    #expect(lifecycle.keepaliveTimedOut(received: 1000, now: self.after(13)) == .none)
    #expect(lifecycle.nextDeadline == self.after(23))
  }

  @Test("Whatever a peer sends answers the keepalive ping")
  func keepaliveAnswered() {
    var lifecycle = self.keepalive()
    lifecycle.streamOpened()
    #expect(lifecycle.timerFired(now: self.after(10)) == .sendKeepalivePing)
    _ = lifecycle.read(now: self.after(11))
    #expect(lifecycle.nextDeadline == self.after(21))
    #expect(lifecycle.timerFired(now: self.after(13)) == .none)
    #expect(lifecycle.timerFired(now: self.after(21)) == .sendKeepalivePing)
  }

  @Test("A peer that talks is not pinged")
  func keepaliveWhileReading() {
    var lifecycle = self.keepalive()
    lifecycle.streamOpened()
    _ = lifecycle.read(now: self.after(9))
    #expect(lifecycle.timerFired(now: self.after(10)) == .none)
    #expect(lifecycle.nextDeadline == self.after(19))
  }

  @Test("Without calls pings are sent only when permitted", arguments: [false, true])
  func keepaliveWithoutCalls(isPermitted: Bool) {
    var lifecycle = self.keepalive(withoutCalls: isPermitted)
    let action = lifecycle.timerFired(now: self.after(10))
    #expect(action == (isPermitted ? .sendKeepalivePing : .none))
    #expect(lifecycle.nextDeadline == self.after(isPermitted ? 13 : 20), "the timer moves on")
  }

  @Test("A draining connection is still watched")
  func keepaliveWhileDraining() {
    var lifecycle = self.keepalive()
    lifecycle.streamOpened()
    #expect(lifecycle.drain(now: Self.start) == .beginDrain)
    #expect(lifecycle.finishDrain() == .finishDrain(closing: false))
    #expect(lifecycle.timerFired(now: self.after(10)) == .sendKeepalivePing)
    #expect(lifecycle.timerFired(now: self.after(13)) == .askDelivery)
  }

  @Test("Nobody is pinged before the handshake")
  func keepaliveBeforeHandshake() {
    var lifecycle = self.make(isEstablished: false) { $0.keepalive.interval = .seconds(1) }
    #expect(lifecycle.nextDeadline == self.after(120))
    #expect(lifecycle.timerFired(now: self.after(60)) == .none)
  }

  // MARK: Pings of the peer

  private func strict(permitWithoutCalls: Bool = false, strikes: Int = 2) -> ConnectionLifecycle {
    self.make {
      $0.keepalive.minReceivedPingInterval = .seconds(60)
      $0.keepalive.permitWithoutCalls = permitWithoutCalls
      $0.keepalive.maxPingStrikes = strikes
    }
  }

  @Test("Pings that come too soon are strikes, and one too many ends the connection")
  func strikes() {
    var lifecycle = self.strict()
    lifecycle.streamOpened()
    for second in 0...2 {
      #expect(lifecycle.receivedPing(now: self.after(Int64(second))) == .none)
    }
    #expect(lifecycle.receivedPing(now: self.after(3)) == .refusePings)
    #expect(!lifecycle.acceptsStreams)
    #expect(lifecycle.nextDeadline == nil)
  }

  @Test("A peer that keeps the interval pings for ever")
  func patientPings() {
    var lifecycle = self.strict()
    lifecycle.streamOpened()
    for minute in Int64(0)..<10 {
      #expect(lifecycle.receivedPing(now: self.after(60 * minute)) == .none)
    }
  }

  @Test("What the server sends forgives the pings before")
  func forgiven() {
    var lifecycle = self.strict()
    lifecycle.streamOpened()
    for second in Int64(0)..<20 {
      #expect(lifecycle.receivedPing(now: self.after(second)) == .none)
      if second % 2 == 0 { lifecycle.sent() }
    }
  }

  @Test("Without calls a ping every two hours is enough, unless they are permitted")
  func pingsWithoutCalls() {
    for isPermitted in [false, true] {
      var lifecycle = self.strict(permitWithoutCalls: isPermitted)
      var actions: [ConnectionLifecycle.Action] = []
      for minute in Int64(0)..<4 {
        actions.append(lifecycle.receivedPing(now: self.after(60 * minute)))
      }
      #expect(actions.contains(.refusePings) == !isPermitted, "\(actions)")
    }
  }

  @Test("No strikes are counted where none are allowed for")
  func endlessStrikes() {
    var lifecycle = self.strict(strikes: 0)
    lifecycle.streamOpened()
    for _ in 0..<100 { #expect(lifecycle.receivedPing(now: Self.start) == .none) }
  }

  @Test("Of several deadlines the first counts")
  func firstDeadline() {
    let lifecycle = self.make {
      $0.keepalive.interval = .seconds(30)
      $0.maxConnectionIdle = .seconds(20)
      $0.maxConnectionAge = .seconds(100)
    }
    #expect(lifecycle.nextDeadline == self.after(20))
  }
}

extension ConnectionLifecycle {
  /// The drain's ping is answered, and time passes.
  fileprivate mutating func finishDrain() -> Action {
    let now = NIODeadline.uptimeNanoseconds(1_000_000_000_000)
    self.drainPingAnswered(now: now)
    return self.timerFired(now: now + Self.lastCalls)
  }
}
