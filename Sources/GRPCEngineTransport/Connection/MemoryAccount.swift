internal import GRPCEngineHTTP2
internal import NIOCore

/// What the peer of one connection makes this server hold, and how much more it is let send.
///
/// Counted is what came and has not been taken: parts of messages, and whole messages that wait for their
/// servicer. Counted apart is what costs memory and is not for windows of ours to stop: headers of calls, what
/// goes out and has not left, and room that is reserved for the rest of a message.
///
/// This keeps what came within `limit` and two messages more, and messages coming:
///
/// - The *connection's window* opens again only while there is room for all of it. So what comes is
///   bounded, whatever a peer does with its streams.
/// - The *window that streams begin with* is smaller where much has come and many could send, so that all of
///   them fill a quarter of the limit: else it would be full of beginnings of messages that wait for one
///   another. Those that would have fitted into the larger one come while there is room for them; of what those
///   may send that stand still, while others send that were let later, an eighth takes none.
/// - A message larger than that window needs more window than streams begin with. It gets as much
///   as twice what came of it *on trial*, while an eighth of the limit suffices for all such, and a quarter
///   of that for each: so those that stand still hold little, and are in nobody's way.
/// - Otherwise, and when it is alone, it is *admitted*, in the order in which streams ask: its window is
///   four times what came, while there is room for all of it within a quarter of the limit, which leaves
///   room for streams that begin later. When there is none, one is admitted all the same, as the
///   *exception*, and is not counted: a single message can always come, whatever its size and whatever
///   others hold. Those that are larger than the quarter wait for that alone, and are passed by others.
/// - Those that wait get a *probe* of window, after one second, two, four and so on. Who uses less than half
///   of it is *dormant*, and those that move go first.
/// - None of that takes the last eighth of the limit, but for probes: it is for calls that begin.
/// - Messages that come slowly have a *lane* of their own: another quarter of the limit, an order and an
///   exception. Nobody who is quick waits for them.
/// - One that is too slow for its lane is admitted no longer, and the next one has its turn. The exception
///   is counted then, if there is room for what it holds.
/// - Where nobody of a lane has come on for half a minute though some wait, memory has run out. Those
///   that stood for so long are *ended*; else of those that were slow the ones that hold the most, or the
///   newest halves as far as they keep the connection's window shut, or a stream whose messages nobody
///   takes.
/// - When all that is left would be halves that wait for one another, the newest are *ended* until
///   there is room.
/// - Headers of open calls have a limit of their own, of the same size: they stay for as long as calls do.
///
/// A value without I/O: the connection says what happens, and does what is returned.
package struct MemoryAccount {
  /// What one stream makes the server hold.
  package struct Holding {
    /// Bytes of its call's headers.
    package var headers = 0
    /// Bytes of whole messages that have not been taken.
    package var whole = 0
    /// Bytes that came of the next message.
    package var partial = 0
    /// Bytes that are still to come of it, as far as is known.
    package var missing = 0
    /// Bytes that the peer may send.
    package var mayCome = 0
    /// Bytes of memory for what goes out and has not left, or that is reserved for what may come.
    package var besides = 0
    /// Whether the peer has said all that it will.
    package var isComplete = false

    package init() {}

    /// Bytes of messages that came and have not been taken.
    package var came: Int { self.whole + self.partial }
    /// Those, and what may come.
    package var expected: Int { self.came + self.mayCome }
    /// Bytes that wait for this server, and not for the peer.
    fileprivate var waiting: Int { self.isComplete ? self.came : self.whole }
    /// Bytes in memory.
    package var cost: Int { self.headers + self.came + self.besides }
  }

  /// How fast messages come. A stream waits for those of its pace alone.
  package enum Pace: CaseIterable { case quick, slow }

  /// The account's note of one stream. The stream keeps it, and the account changes it.
  package struct Share {
    package let stream: Int
    /// What is counted for it, with what may come.
    package var expected: Int { self.claim.expected }
    package fileprivate(set) var holding = Holding()
    package fileprivate(set) var isWaiting = false
    package fileprivate(set) var pace = Pace.quick
    /// Whether it waits and does not move.
    fileprivate var isDormant = false
    /// Whether its message may come as a whole.
    fileprivate var isAdmitted = false
    /// Bytes that came since somebody looked at its pace.
    fileprivate var moved = 0
    /// When it was let send more, as a number that grows with each such event, and with all that comes.
    fileprivate var letAt = 0
    /// When it was, or something came.
    fileprivate var turn = 0
    /// Whether others that were let send later have sent since, and it has not.
    fileprivate var isStanding = false
    /// Bytes that came between the last two looks, if the peer could send.
    fileprivate var rate = 0
    /// How many bytes of a message its peer could send when somebody looked last.
    fileprivate var couldSend = 0
    /// How often somebody has looked while it waited.
    fileprivate var waitedFor = 0
    /// How often somebody has looked and it was slow, and some less for each time that it was not.
    fileprivate var slowFor = 0
    /// The same for too slow even for those that are slow.
    fileprivate var tricklingFor = 0
    /// How often in a row somebody has looked and nothing had come.
    fileprivate var standingFor = 0
    /// How often in a row somebody has looked and nothing had been taken of what was there.
    fileprivate var untakenFor = 0
    /// Bytes of whole messages when somebody looked last.
    fileprivate var seenWhole = 0
    /// What is counted for it.
    fileprivate var claim = Claim()

    package init(stream: Int) { self.stream = stream }
  }

  /// What is counted for a stream, or for all of them.
  fileprivate struct Claim {
    /// Bytes that came.
    var came = 0
    /// Those, and what may come.
    var expected = 0
    /// Bytes that came, and those that may come of large messages.
    var promised = 0
    /// What may be held of a message that comes, beyond the window that every stream has.
    var large = 0
    /// That, if it is not admitted.
    var onTrial = 0
    /// What came and waits for this server.
    var waiting = 0
    /// Headers.
    var headers = 0
    /// What may come of brief messages that stand still.
    var standing = 0
    /// Streams that may send.
    var open = 0

    /// What may be held of it, if it is admitted.
    var admitted: Int { self.large - self.onTrial }

    static func += (total: inout Self, claim: Self) {
      total.came += claim.came
      total.expected += claim.expected
      total.promised += claim.promised
      total.large += claim.large
      total.onTrial += claim.onTrial
      total.waiting += claim.waiting
      total.headers += claim.headers
      total.standing += claim.standing
      total.open += claim.open
    }

    static func -= (total: inout Self, claim: Self) {
      total.came -= claim.came
      total.expected -= claim.expected
      total.promised -= claim.promised
      total.large -= claim.large
      total.onTrial -= claim.onTrial
      total.waiting -= claim.waiting
      total.headers -= claim.headers
      total.standing -= claim.standing
      total.open -= claim.open
    }
  }

  /// The stream whose message comes although there is no room for it.
  private struct Exception {
    let stream: Int
    var pace: Pace
    var claim: Claim
    /// Whether its message has come, or takes its time: it is to be counted.
    var isDone = false
    /// Whether it needs more window. It is in no queue: nobody goes before it.
    var isWaiting = false

    init(_ share: Share) {
      self.stream = share.stream
      self.pace = share.pace
      self.claim = share.claim
    }
  }

  /// Streams of one pace.
  private struct Lane {
    /// What may be held of messages that are admitted, beyond the window that every stream has.
    var admitted = 0
    /// Mostly one of them; it may be of another pace by now, and without room there.
    var exception: Exception?
    /// Those that need more window.
    private var waiting = Queue()
    /// Those that need it too, but could send and did not.
    private var dormant = Queue()
    private var lastTicket = 0
    /// Whether a message has been admitted, or has come on, since somebody looked.
    var isServed = false
    /// How often somebody has looked and none had though some wait, and some less for each time that
    /// one had.
    var starvingFor = 0

    var isWaiting: Bool {
      !self.waiting.isEmpty || !self.dormant.isEmpty || self.exception?.isWaiting == true
    }

    /// Whose turn it is, of those for which there may be room.
    var next: Int? {
      if let exception = self.exception, exception.isWaiting { return exception.stream }
      return self.nextMoving ?? self.dormant.next(isTaken: self.exception != nil)
    }

    /// Whose turn it is before somebody's who has not waited yet.
    var nextMoving: Int? { self.waiting.next(isTaken: self.exception != nil) }

    mutating func append(_ stream: Int, isOversize: Bool) {
      self.lastTicket += 1
      let waiter = Waiter(stream: stream, isOversize: isOversize, ticket: self.lastTicket)
      self.waiting.append(waiter)
    }

    mutating func prepend(_ stream: Int, isOversize: Bool) {
      self.waiting.prepend(Waiter(stream: stream, isOversize: isOversize, ticket: 0))
    }

    mutating func remove(_ stream: Int) {
      if self.waiting.take(stream) == nil { _ = self.dormant.take(stream) }
    }

    /// A stream that waits does not move.
    mutating func pass(_ stream: Int) {
      if let waiter = self.waiting.take(stream) { self.dormant.append(waiter) }
    }

    /// It moves again: it has waited for longer than others.
    mutating func heed(_ stream: Int) {
      if let waiter = self.dormant.take(stream) { self.waiting.prepend(waiter) }
    }
  }

  /// Streams in the order in which they asked.
  private struct Queue {
    private var fitting = CircularBuffer<Waiter>()
    /// Those that others pass until they may be the exception.
    private var oversize = CircularBuffer<Waiter>()

    var isEmpty: Bool { self.fitting.isEmpty && self.oversize.isEmpty }

    /// - Parameter isTaken: whether there is an exception already.
    func next(isTaken: Bool) -> Int? {
      guard !isTaken, let large = self.oversize.first else { return self.fitting.first?.stream }
      guard let other = self.fitting.first, other.ticket < large.ticket else { return large.stream }
      return other.stream
    }

    mutating func append(_ waiter: Waiter) {
      if waiter.isOversize { self.oversize.append(waiter) } else { self.fitting.append(waiter) }
    }

    mutating func prepend(_ waiter: Waiter) {
      if waiter.isOversize { self.oversize.prepend(waiter) } else { self.fitting.prepend(waiter) }
    }

    mutating func take(_ stream: Int) -> Waiter? {
      if let place = self.fitting.firstIndex(where: { $0.stream == stream }) {
        return self.fitting.remove(at: place)
      }
      let place = self.oversize.firstIndex { $0.stream == stream }
      return place.map { self.oversize.remove(at: $0) }
    }
  }

  private struct Waiter {
    let stream: Int
    /// Whether its message comes as an exception or not at all.
    let isOversize: Bool
    /// The lower it is, the earlier it asked.
    let ticket: Int
  }

  private struct Lanes {
    private var quick = Lane()
    private var slow = Lane()

    subscript(pace: Pace) -> Lane {
      get { pace == .quick ? self.quick : self.slow }
      _modify {
        if pace == .quick { yield &self.quick } else { yield &self.slow }
      }
    }

    var haveWaiting: Bool { self.quick.isWaiting || self.slow.isWaiting }

    func isException(_ stream: Int) -> Bool {
      self.quick.exception?.stream == stream || self.slow.exception?.stream == stream
    }

    /// A stream has been admitted, or has come on: for those of its pace, and those that wait for it.
    mutating func serve(_ share: Share) {
      self[share.pace].isServed = true
      if self.quick.exception?.stream == share.stream { self.quick.isServed = true }
      if self.slow.exception?.stream == share.stream { self.slow.isServed = true }
    }

    /// Changes the exception that a stream is, if it is one.
    @inline(__always)
    mutating func changeException(_ stream: Int, _ change: (inout Exception?) -> Void) {
      if self.quick.exception?.stream == stream { change(&self.quick.exception) }
      if self.slow.exception?.stream == stream { change(&self.slow.exception) }
    }
  }

  private let limit: Int
  /// How far a stream's window opens without being asked for; see `adaptStreamWindow`.
  package private(set) var streamWindow: Int
  private let largestStreamWindow: Int
  /// How far the connection's window opens.
  package let window: Int

  /// What is counted for all streams.
  private var total = Claim()
  /// Bytes in memory.
  private var cost = 0
  private var lanes = Lanes()
  /// The last one that a stream has had.
  private var lastTurn = 0
  /// The latest turn at which a stream was let send that has sent since. Peers send more or less in turn: those
  /// that were let before mostly have nothing to send.
  private var lastUsedTurn = 0
  /// Whether the connection's window has been shut since somebody looked.
  private var wasWindowShut = false
  /// Whether something has been taken since then while it was shut: it is on its way to be open.
  private var hasReleased = false
  /// Whether the connection's window is due to open again and does not.
  package private(set) var isWindowShut = false

  /// - Parameters:
  ///   - limit: bytes; `Int.max` for none.
  ///   - window: the connection's window; it is at most a quarter of the limit.
  package init(limit: Int, window: Int, streamWindow: Int) {
    self.limit = limit
    self.streamWindow = streamWindow
    self.largestStreamWindow = streamWindow
    self.window = max(min(window, limit / 4), HTTP2Settings.initialWindow)
  }

  /// Whether something waits for others to be released.
  package var isTight: Bool { self.isWindowShut || self.lanes.haveWaiting }

  /// Bytes that came and have not been taken.
  package var came: Int { self.total.came }

  /// What is counted but for exceptions.
  private var counted: Claim {
    var counted = self.total
    for pace in Pace.allCases {
      if let exception = self.lanes[pace].exception { counted -= exception.claim }
    }
    return counted
  }
  /// How much may have come for the connection's window to open.
  private var most: Int { self.limit - self.window }
  /// How much may have come, or be let come, for large messages to get more: the rest is for calls that
  /// begin.
  private var mostPromised: Int { self.most - self.limit / 8 }

  // MARK: Events

  /// A stream holds other amounts than before.
  ///
  /// - Returns: by how many bytes more memory is used.
  package mutating func charge(_ share: inout Share, _ holding: Holding) -> Int {
    let change = holding.cost - share.holding.cost
    if self.isWindowShut, holding.came < share.holding.came { self.hasReleased = true }
    self.cost += change
    let moved = max(0, holding.came - share.holding.came)
    share.moved += moved
    if moved > 0 { self.lastUsedTurn = max(self.lastUsedTurn, share.letAt) }
    let isLet = holding.mayCome > share.holding.mayCome
    if moved > 0 || isLet {
      self.lastTurn += 1
      share.turn = self.lastTurn
      if isLet { share.letAt = self.lastTurn }
      share.isStanding = false
    }
    share.holding = holding
    self.recount(&share)
    // Its message has been taken, or it is gone.
    if holding.whole == 0, holding.partial == 0, self.lanes.isException(share.stream) {
      self.leave(&share)
      self.lanes.changeException(share.stream) { $0 = nil }
    }
    return change
  }

  @inline(__always)
  private mutating func recount(_ share: inout Share) {
    let claim = self.claim(of: share, isAdmitted: share.isAdmitted)
    self.total -= share.claim
    self.total += claim
    if claim.admitted != share.claim.admitted {
      self.lanes[share.pace].admitted += claim.admitted - share.claim.admitted
    }
    share.claim = claim
    self.lanes.changeException(share.stream) { $0?.claim = claim }
  }

  @inline(__always)
  private func claim(of share: Share, isAdmitted: Bool) -> Claim {
    let holding = share.holding
    let isBrief = self.isBrief(share)
    let toCome = isAdmitted ? max(holding.mayCome, holding.missing) : holding.mayCome
    func beyond(_ window: Int) -> Int {
      holding.isComplete ? 0 : max(0, holding.partial + toCome - window)
    }
    let large = beyond(isBrief ? self.largestStreamWindow : self.streamWindow)
    return Claim(
      came: holding.came,
      expected: holding.came + toCome,
      promised: holding.came + min(toCome, beyond(self.streamWindow)),
      large: large,
      onTrial: isAdmitted ? 0 : large,
      waiting: holding.waiting,
      headers: holding.headers,
      standing: isBrief && share.isStanding && !isAdmitted ? toCome : 0,
      open: holding.isComplete ? 0 : 1
    )
  }

  /// A message of a stream has come as a whole; to be called before it is charged.
  @inline(__always)
  package mutating func completed(_ share: inout Share) {
    (share.slowFor, share.tricklingFor, share.couldSend) = (0, 0, 0)
    if share.isAdmitted { self.withdraw(&share) }
    if share.pace != .quick { self.change(&share, to: .quick) }
  }

  private mutating func withdraw(_ share: inout Share) {
    share.isAdmitted = false
    self.lanes.changeException(share.stream) { $0?.isDone = true }
  }

  private mutating func change(_ share: inout Share, to pace: Pace) {
    self.leave(&share)
    self.lanes[share.pace].admitted -= share.claim.admitted
    share.pace = pace
    self.lanes[pace].admitted += share.claim.admitted
    self.lanes.changeException(share.stream) { $0?.pace = pace }
  }

  /// Looks how much of a stream came since the last time. To be called once a second for all streams
  /// while the account is tight, and `endStarvation` then.
  package mutating func look(_ share: inout Share) {
    let holding = share.holding
    let isUntaken = holding.whole > 0 && holding.whole >= share.seenWhole
    share.untakenFor = isUntaken ? share.untakenFor + 1 : 0
    share.seenWhole = holding.whole
    let moved = share.moved
    share.moved = 0
    if moved > 0 { share.standingFor = 0 }
    let isMoving = moved >= max(1, min(share.couldSend, Self.probe) / 2)
    if isMoving, share.isDormant {
      share.isDormant = false
      self.lanes[share.pace].heed(share.stream)
    }
    if share.isWaiting { share.waitedFor += 1 }
    let isStanding = holding.mayCome > 0 && share.turn < self.lastUsedTurn
    if share.isStanding != isStanding {
      share.isStanding = isStanding
      self.recount(&share)
    }
    // Whom this server lets send nothing is neither slow nor quick.
    let canSend = holding.partial > 0 && !self.isWindowShut ? holding.mayCome : 0
    defer { share.couldSend = canSend }
    guard canSend > 0, share.couldSend > 0, !self.wasWindowShut else { return }
    if moved == 0 { share.standingFor += 1 }
    if share.isWaiting {
      // It may send too little to be slow or quick.
      if !isMoving, !share.isDormant {
        share.isDormant = true
        self.lanes[share.pace].pass(share.stream)
      }
      return
    }
    share.rate = moved
    let most = min(holding.missing, self.window)
    let isSlow = moved < max(1, most / Self.secondsForWindow)
    let isTrickling = moved < max(1, most / Self.secondsForSlowWindow)
    share.slowFor = Self.often(share.slowFor, isSlow)
    share.tricklingFor = Self.often(share.tricklingFor, isTrickling)
    let pace = share.slowFor > 0 ? Pace.slow : .quick
    if isTrickling || share.pace != pace {
      self.withdraw(&share)
      self.change(&share, to: pace)
      self.recount(&share)
    } else if share.isAdmitted {
      self.lanes.serve(share)
    }
  }

  /// How many bytes more a stream that waits may send, for a look at whether it does; to be called after
  /// one. Peers that have stopped wait as others do: those that move go first.
  package func probe(_ share: inout Share) -> Int {
    // Seldom of those that wait for long: what they send for it fills memory.
    let isDue = share.waitedFor > 0 && share.waitedFor & (share.waitedFor - 1) == 0
    guard isDue, share.isWaiting, share.holding.mayCome == 0, !self.isWindowShut else { return 0 }
    let probe = min(Self.probe, share.holding.missing)
    let counted = self.counted
    guard probe <= self.limit / 4 - counted.onTrial,
      probe <= self.mostPromised + self.limit / 16 - counted.promised
    else { return 0 }
    share.couldSend = probe
    return probe
  }

  private static func often(_ count: Int, _ isSo: Bool) -> Int {
    max(0, count + (isSo ? 1 : -8))
  }

  /// Whom to end as others have waited for too long.
  ///
  /// - Parameters:
  ///   - shares: those of all streams.
  ///   - isPoolFull: whether all connections together hold too much, which is what they wait for.
  package mutating func endStarvation(_ shares: some Sequence<Share>, isPoolFull: Bool) -> [Int] {
    self.wasWindowShut = self.isWindowShut
    for pace in Pace.allCases {
      let isWaiting = self.isWindowShut || self.lanes[pace].isWaiting
      let isStarving = !self.lanes[pace].isServed && !self.hasReleased && !isPoolFull
      self.lanes[pace].isServed = false
      self.lanes[pace].starvingFor =
        isWaiting ? Self.often(self.lanes[pace].starvingFor, isStarving) : 0
    }
    self.hasReleased = false
    guard Pace.allCases.contains(where: { self.lanes[$0].starvingFor >= Self.secondsToStarve })
    else { return [] }
    return self.victims(shares)
  }

  private func victims(_ shares: some Sequence<Share>) -> [Int] {
    let standing = shares.filter { $0.standingFor >= Self.secondsToStarve }.map(\.stream)
    if !standing.isEmpty { return standing }
    let slow = shares.filter { $0.slowFor >= Self.secondsToStarve }
      .sorted { Self.isMoreInTheWay($0, $1) }
    // No more than a message needs.
    if !slow.isEmpty { return Self.first(of: slow, with: self.limit / 8) }
    let excess = self.counted.came - self.most
    let halves = shares.filter { $0.holding.partial > 0 }.sorted { $0.stream > $1.stream }
    if excess > 0, !halves.isEmpty { return Self.first(of: halves, with: excess) }
    let untaken = shares.filter {
      !$0.holding.isComplete && $0.untakenFor >= Self.secondsToStarve
    }
    let most = untaken.max { ($0.holding.whole, $0.stream) < ($1.holding.whole, $1.stream) }
    return most.map { [$0.stream] } ?? []
  }

  private static func isMoreInTheWay(_ share: Share, _ other: Share) -> Bool {
    func key(_ share: Share) -> (Int, Int, Int) {
      (share.tricklingFor >= Self.secondsToStarve ? 1 : 0, share.holding.came, share.stream)
    }
    return key(share) > key(other)
  }

  private static func first(of shares: [Share], with bytes: Int) -> [Int] {
    var left = bytes
    return shares.prefix { share in
      defer { left -= share.holding.came }
      return left > 0
    }
    .map(\.stream)
  }

  private static var probe: Int { 4096 }
  private static var leastStreamWindow: Int { 256 }
  /// In how many seconds a stream must send as much as the connection's window, or the rest of its message.
  private static var secondsForWindow: Int { 2 }
  private static var secondsForSlowWindow: Int { 128 }
  private static var secondsToStarve: Int { 30 }

  /// Whether a call with headers of `size` bytes may begin.
  package func mayBegin(_ size: Int) -> Bool { self.total.headers <= self.limit - size }

  /// Whether streams begin with less than they would without all the others.
  package var isStreamWindowLowered: Bool { self.streamWindow < self.largestStreamWindow }

  /// Changes what streams begin with, if it is time. To be called as things come, and, where it is lowered, as
  /// streams end; all are to be charged again then, and to ask for more.
  ///
  /// It is lowered once an eighth of the limit has come where all could fill five, and raised when half of
  /// that is there again.
  ///
  /// - Returns: whether it has changed.
  package mutating func adaptStreamWindow() -> Bool {
    let open = max(1, self.total.open)
    let isTooLarge = self.streamWindow > max(self.limit / 8 * 5 / open, Self.leastStreamWindow)
    guard isTooLarge || self.isStreamWindowLowered else { return false }
    let fair = max(Self.powerOfTwo(below: self.limit / 4 / open), Self.leastStreamWindow)
    let window = min(fair, self.largestStreamWindow)
    let came = self.counted.came
    let isDue =
      isTooLarge ? came > self.limit / 8 : window > self.streamWindow && came <= self.limit / 16
    guard isDue else { return false }
    self.streamWindow = window
    return true
  }

  /// The largest power of two that is no larger than a positive number.
  private static func powerOfTwo(below number: Int) -> Int {
    number > 0 ? 1 << (Int.bitWidth - 1 - number.leadingZeroBitCount) : 0
  }

  /// How far the window of a stream is to open for its message, of which `partial` bytes have come.
  package func openness(_ share: Share, partial: Int) -> Int {
    // Who is slow needs little more than what came in the last second.
    let isBounded = share.pace == .slow && self.isTight
    let most = isBounded ? min(4 * share.rate, self.window) : self.window
    let openness = (share.isAdmitted ? 4 : 2) * partial
    return min(self.isBrief(share) ? max(openness, self.largestStreamWindow) : openness, most)
  }

  /// Whether only the smaller window keeps a message from coming without being asked for.
  private func isBrief(_ share: Share) -> Bool {
    self.isStreamWindowLowered
      && share.holding.partial + share.holding.missing <= self.largestStreamWindow
  }

  /// Whether the window of a stream may open for `growth` bytes more, or as far as `openness` says by
  /// then; otherwise it has its turn later, as `nextWaiting`. To be called once its holding is charged.
  ///
  /// - Parameters:
  ///   - mayWait: whether it has nearly used its window. Others wait for nobody who may go on.
  ///   - isPoolFull: whether all connections together hold too much.
  package mutating func mayGrow(
    _ share: inout Share,
    by growth: Int,
    mayWait: Bool,
    isPoolFull: Bool
  ) -> Bool {
    if !isPoolFull, self.mayTry(share, growth) || self.admit(&share) {
      self.leave(&share)
      return true
    }
    guard mayWait, !share.isWaiting else { return false }
    (share.isWaiting, share.waitedFor, share.couldSend) = (true, 0, 0)
    if self.lanes.isException(share.stream) {
      self.lanes.changeException(share.stream) { $0?.isWaiting = true }
    } else {
      let isOversize = self.claim(of: share, isAdmitted: true).large > self.limit / 4
      self.lanes[share.pace].append(share.stream, isOversize: isOversize)
    }
    return false
  }

  private func mayTry(_ share: Share, _ growth: Int) -> Bool {
    guard !share.isAdmitted, !share.isWaiting else { return false }
    let counted = self.counted
    if self.isBrief(share) { return growth <= self.mostPromised - self.likely(counted) }
    return self.total.large > share.claim.large
      && growth <= self.limit / 8 - counted.onTrial
      && growth <= self.limit / 32 - share.claim.onTrial
      && growth <= self.mostPromised - self.likely(counted)
  }

  private mutating func admit(_ share: inout Share) -> Bool {
    if share.isAdmitted { return true }
    self.countExceptions()
    if !self.isExceptionAgain(share) {
      guard self.hasTurn(share) else { return false }
      if !self.hasRoom(for: share) {
        guard self.lanes[share.pace].exception == nil else { return false }
        self.lanes[share.pace].exception = Exception(share)
      }
    }
    if !share.isDormant { self.lanes.serve(share) }
    share.isAdmitted = true
    // It had no time yet.
    share.couldSend = 0
    self.recount(&share)
    return true
  }

  private func hasTurn(_ share: Share) -> Bool {
    let lane = self.lanes[share.pace]
    return share.isWaiting ? lane.next == share.stream : lane.nextMoving == nil
  }

  /// Whether a message of a stream came as an exception, is not counted yet, and may go on.
  private mutating func isExceptionAgain(_ share: Share) -> Bool {
    // Whoever is waited for, also by those of another pace: two that wait for one another would for ever.
    guard self.lanes.isException(share.stream) else { return false }
    self.lanes.changeException(share.stream) { $0?.isDone = false }
    return true
  }

  private func hasRoom(for share: Share) -> Bool {
    let claim = self.claim(of: share, isAdmitted: true)
    let counted = self.counted
    // Those that are slow leave to others what those may have.
    let most = share.pace == .slow ? self.mostPromised - self.limit / 4 : self.mostPromised
    return claim.large <= self.limit / 4 - self.admitted(of: share.pace)
      && claim.expected - share.claim.expected <= most - self.likely(counted)
  }

  /// What came and what is likely to: of what stands still so much is passed over that there is room for all
  /// should it come after all.
  private func likely(_ counted: Claim) -> Int {
    counted.expected - min(counted.standing, self.limit / 8)
  }

  /// What is counted of the messages of one pace that are admitted.
  private func admitted(of pace: Pace) -> Int {
    Pace.allCases.reduce(self.lanes[pace].admitted) { admitted, lane in
      guard let exception = self.lanes[lane].exception, exception.pace == pace else {
        return admitted
      }
      return admitted - exception.claim.admitted
    }
  }

  /// Counts exceptions that are done like others, if there is room for what they hold. Else one that has
  /// changed its pace is none for those whom it has left, as soon as it can be one for the others, or the
  /// exception of those has changed places with it.
  private mutating func countExceptions() {
    for pace in Pace.allCases {
      guard let exception = self.lanes[pace].exception, exception.isDone else { continue }
      if self.counted.promised <= self.mostPromised - exception.claim.promised {
        self.lanes[pace].exception = nil
        if exception.isWaiting {
          self.lanes[exception.pace].prepend(exception.stream, isOversize: false)
        }
      } else if exception.pace != pace {
        let other = self.lanes[exception.pace].exception
        guard other.map({ $0.pace == pace }) ?? true else { continue }
        self.lanes[exception.pace].exception = exception
        self.lanes[pace].exception = other
      }
    }
  }

  /// The stream of a pace that is to ask again; it stays so until it has.
  package mutating func nextWaiting(_ pace: Pace) -> Int? {
    self.countExceptions()
    return self.lanes[pace].next
  }

  /// A stream asks no more.
  package mutating func leave(_ share: inout Share) {
    guard share.isWaiting else { return }
    (share.isWaiting, share.isDormant) = (false, false)
    self.lanes.changeException(share.stream) { $0?.isWaiting = false }
    self.lanes[share.pace].remove(share.stream)
  }

  /// Whether the connection's window, which is due, may open again.
  package mutating func mayOpenWindow(isPoolFull: Bool) -> Bool {
    self.isWindowShut = isPoolFull || self.counted.came > self.most
    if self.isWindowShut { self.wasWindowShut = true }
    return !self.isWindowShut
  }

  // MARK: Streams that have to end

  /// What waits for its peer, and not for this server.
  private var unfinished: Int {
    let counted = self.counted
    return counted.came - counted.waiting
  }

  /// Whether what waits will wait for ever: nothing that is whole will make room for it.
  package var isStuck: Bool { self.isTight && self.unfinished > self.most }

  /// Whom to end so that others can go on, those that are slow and then the newest first; none unless
  /// the account is stuck. One stays always, the oldest that moves, if any; it is the exception if it is
  /// too large.
  ///
  /// - Parameter shares: those of all streams.
  package mutating func streamsInTheWay(_ shares: some Sequence<Share>) -> [Int] {
    guard self.isStuck else { return [] }
    // Some more than must be, so that the next one does not have to look through all of them.
    let target = self.most / 4 * 3
    var left = self.unfinished
    var streams: [Int] = []
    let unfinished = shares.filter {
      $0.holding.came > $0.holding.waiting && !self.lanes.isException($0.stream)
    }
    .sorted { ($0.pace == .slow ? 1 : 0, $0.stream) > ($1.pace == .slow ? 1 : 0, $1.stream) }
    for share in unfinished.dropLast() where left > target {
      left -= share.holding.came - share.holding.waiting
      streams.append(share.stream)
    }
    guard left > self.most, let last = unfinished.last else { return streams }
    // It does not fit by itself. An exception that is whole is waited for.
    if let exception = self.lanes[last.pace].exception?.stream {
      guard shares.contains(where: { $0.stream == exception && !$0.holding.isComplete }) else {
        return streams
      }
      streams.append(exception)
    }
    self.lanes[last.pace].exception = Exception(last)
    if last.isWaiting {
      self.lanes[last.pace].remove(last.stream)
      self.lanes[last.pace].exception?.isWaiting = true
    }
    return streams
  }

  /// Whom to end when all connections together hold too much and this one the most: the newest, until
  /// half is free.
  ///
  /// - Parameter isOnlyHolder: whether no other connection holds anything; the oldest stays then.
  package func newestHalf(_ shares: some Sequence<Share>, isOnlyHolder: Bool) -> [Int] {
    var left = self.cost
    let target = left / 2
    var streams: [Int] = []
    let holding = shares.filter { $0.holding.cost > 0 }.sorted { $0.stream > $1.stream }
    for share in isOnlyHolder ? holding.dropLast() : holding[...] where left > target {
      left -= share.holding.cost
      streams.append(share.stream)
    }
    return streams
  }
}
