internal import GRPCEngineHTTP2
internal import NIOCore

/// What the peer of one connection makes this server hold, and how much more it is let send.
///
/// Counted is what came and has not been taken: headers of calls, parts of messages, whole messages
/// that wait for their servicer. Counted apart is what costs memory and is not for windows of ours to
/// stop: what goes out and has not left, and room that is reserved for the rest of a message.
///
/// This keeps what came within `limit` and one message more, and messages coming:
///
/// - The *connection's window* opens again only while there is room for all of it. So what comes is
///   bounded, whatever a peer does with its streams.
/// - A message larger than a stream's window needs more window than streams begin with. It gets as much
///   as twice what came of it *on trial*, while an eighth of the limit suffices for all such: so those
///   that stand still hold little, and are in nobody's way.
/// - Otherwise, and when it is alone, it is *admitted*, in the order in which streams ask: its window is
///   four times what came, while there is room for all of it within a quarter of the limit, which leaves
///   room for streams that begin later. When there is none, one is admitted all the same, as the
///   *exception*, and is not counted: a single message can always come, whatever its size and whatever
///   others hold.
/// - One that is slow is admitted no longer, and the next one has its turn. The exception is counted
///   then, if there is room for what it holds.
/// - Where nobody has been admitted for half a minute though some wait, memory has run out. Those
///   that stood for so long are *ended*; else of those that were slow the ones that hold the most, or the
///   newest halves as far as they keep the connection's window shut, or a stream whose messages nobody
///   takes.
/// - When all that is left would be halves that wait for one another, the newest are *ended* until
///   there is room.
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

    /// Bytes that came and have not been taken.
    package var came: Int { self.headers + self.whole + self.partial }
    /// Those, and what may come.
    package var expected: Int { self.came + self.mayCome }
    /// Bytes that wait for this server, and not for the peer.
    fileprivate var waiting: Int { self.isComplete ? self.came : self.whole }
    /// Bytes in memory.
    package var cost: Int { self.came + self.besides }
  }

  /// The account's note of one stream. The stream keeps it, and the account changes it.
  package struct Share {
    package let stream: Int
    package fileprivate(set) var holding = Holding()
    package fileprivate(set) var isWaiting = false
    /// Whether its message may come as a whole.
    fileprivate var isAdmitted = false
    /// Bytes that came since somebody looked at its pace.
    fileprivate var moved = 0
    /// How often somebody has looked and it was slow, and some less for each time that it was not.
    fileprivate var slowFor = 0
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
    /// What may be held of a message that comes, beyond the window that every stream has.
    var large = 0
    /// That, if it is not admitted.
    var onTrial = 0
    /// What came and waits for this server.
    var waiting = 0

    static func += (total: inout Self, claim: Self) {
      total.came += claim.came
      total.expected += claim.expected
      total.large += claim.large
      total.onTrial += claim.onTrial
      total.waiting += claim.waiting
    }

    static func -= (total: inout Self, claim: Self) {
      total.came -= claim.came
      total.expected -= claim.expected
      total.large -= claim.large
      total.onTrial -= claim.onTrial
      total.waiting -= claim.waiting
    }
  }

  /// The stream whose message comes although there is no room for it.
  private struct Exception {
    let stream: Int
    var claim: Claim
    /// Whether its message has come, or takes its time: it is to be counted.
    var isDone = false
  }

  private let limit: Int
  /// How far a stream's window opens without being asked for.
  private let streamWindow: Int
  /// How far the connection's window opens.
  package let window: Int

  /// What is counted for all streams.
  private var total = Claim()
  /// Bytes in memory.
  private var cost = 0
  private var exception: Exception?
  /// Streams that need more window, in the order in which they asked; the exception before them.
  private var waiting = CircularBuffer<Int>()
  /// Whether a message has been admitted since somebody looked.
  private var hasAdmitted = false
  /// How often in a row somebody has looked, and none had been though some wait.
  private var starvingFor = 0
  /// Whether the connection's window is due to open again and does not.
  package private(set) var isWindowShut = false

  /// - Parameters:
  ///   - limit: bytes; `Int.max` for none.
  ///   - window: the connection's window; it is at most a quarter of the limit.
  package init(limit: Int, window: Int, streamWindow: Int) {
    self.limit = limit
    self.streamWindow = streamWindow
    self.window = max(min(window, limit / 4), HTTP2Settings.initialWindow)
  }

  /// Whether something waits for others to be released.
  package var isTight: Bool { self.isWindowShut || !self.waiting.isEmpty }

  /// Bytes that came and have not been taken.
  package var came: Int { self.total.came }

  /// What is counted but for the exception.
  private var counted: Claim {
    var counted = self.total
    if let exception = self.exception { counted -= exception.claim }
    return counted
  }
  /// How much may have come for the connection's window to open.
  private var most: Int { self.limit - self.window }

  // MARK: Events

  /// A stream holds other amounts than before.
  ///
  /// - Returns: by how many bytes more memory is used.
  package mutating func charge(_ share: inout Share, _ holding: Holding) -> Int {
    let change = holding.cost - share.holding.cost
    self.cost += change
    share.moved += max(0, holding.came - share.holding.came)
    share.holding = holding
    self.recount(&share)
    // Its message has been taken, or it is gone.
    if self.exception?.stream == share.stream, holding.whole == 0, holding.partial == 0 {
      self.exception = nil
    }
    return change
  }

  @inline(__always)
  private mutating func recount(_ share: inout Share) {
    self.total -= share.claim
    share.claim = self.claim(of: share.holding, isAdmitted: share.isAdmitted)
    self.total += share.claim
    if self.exception?.stream == share.stream { self.exception?.claim = share.claim }
  }

  @inline(__always)
  private func claim(of holding: Holding, isAdmitted: Bool) -> Claim {
    let toCome = isAdmitted ? max(holding.mayCome, holding.missing) : holding.mayCome
    let large = holding.isComplete ? 0 : max(0, holding.partial + toCome - self.streamWindow)
    return Claim(
      came: holding.came,
      expected: holding.came + toCome,
      large: large,
      onTrial: isAdmitted ? 0 : large,
      waiting: holding.waiting
    )
  }

  /// A message of a stream has come as a whole; to be called before it is charged.
  @inline(__always)
  package mutating func completed(_ share: inout Share) {
    share.slowFor = 0
    if share.isAdmitted { self.withdraw(&share) }
  }

  private mutating func withdraw(_ share: inout Share) {
    share.isAdmitted = false
    if self.exception?.stream == share.stream { self.exception?.isDone = true }
  }

  /// Looks how much of a stream came since the last time. To be called once a second for all streams
  /// while the account is tight, and `endStarvation` then.
  package mutating func look(_ share: inout Share) {
    let mayCome = share.holding.mayCome
    let isUntaken = share.holding.whole > 0 && share.holding.whole >= share.seenWhole
    share.untakenFor = isUntaken ? share.untakenFor + 1 : 0
    share.seenWhole = share.holding.whole
    if share.moved > 0 { share.standingFor = 0 }
    // Whom this server lets send nothing is neither slow nor quick, and gets a second from then on.
    guard share.holding.partial > 0, mayCome > 0, !share.isWaiting, !self.isWindowShut else {
      share.moved = self.isWindowShut ? mayCome : 0
      return
    }
    let isSlow = share.moved < max(1, mayCome / Self.secondsForWindow)
    share.slowFor = max(0, share.slowFor + (isSlow ? 1 : -Self.secondsForWindow))
    if share.moved == 0 { share.standingFor += 1 }
    share.moved = 0
    guard isSlow, share.isAdmitted else { return }
    self.withdraw(&share)
    self.recount(&share)
  }

  /// Whom to end as others have waited for too long.
  ///
  /// - Parameters:
  ///   - shares: those of all streams.
  ///   - isPoolFull: whether all connections together hold too much, which is what they wait for.
  package mutating func endStarvation(_ shares: some Sequence<Share>, isPoolFull: Bool) -> [Int] {
    let isStarving = self.isTight && !self.hasAdmitted && !isPoolFull
    self.hasAdmitted = false
    self.starvingFor = isStarving ? self.starvingFor + 1 : 0
    guard self.starvingFor >= Self.secondsToStarve else { return [] }
    self.starvingFor = 0
    let standing = shares.filter { $0.standingFor >= Self.secondsToStarve }.map(\.stream)
    if !standing.isEmpty { return standing }
    let slow = shares.filter { $0.slowFor >= Self.secondsToStarve }
      .sorted { ($0.holding.came, $0.stream) > ($1.holding.came, $1.stream) }
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

  private static func first(of shares: [Share], with bytes: Int) -> [Int] {
    var left = bytes
    return shares.prefix { share in
      defer { left -= share.holding.came }
      return left > 0
    }
    .map(\.stream)
  }

  /// In how many seconds a stream must send what it may.
  private static var secondsForWindow: Int { 8 }
  private static var secondsToStarve: Int { 30 }

  /// Whether a call with headers of `size` bytes may begin.
  package func mayBegin(_ size: Int) -> Bool { self.counted.came <= self.limit - size }

  /// How far the window of a stream is to open for its message, of which `partial` bytes have come.
  package func openness(_ share: Share, partial: Int) -> Int {
    // Who is slow needs no more than every stream has.
    share.slowFor > 0 ? 0 : min((share.isAdmitted ? 4 : 2) * partial, self.window)
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
    share.isWaiting = true
    if self.exception?.stream == share.stream {
      self.waiting.prepend(share.stream)
    } else {
      self.waiting.append(share.stream)
    }
    return false
  }

  private func mayTry(_ share: Share, _ growth: Int) -> Bool {
    guard !share.isAdmitted, !share.isWaiting, self.total.large > share.claim.large else {
      return false
    }
    let counted = self.counted
    return growth <= self.limit / 8 - counted.onTrial && growth <= self.most - counted.expected
  }

  private mutating func admit(_ share: inout Share) -> Bool {
    if share.isAdmitted { return true }
    self.countException()
    if self.exception?.stream != share.stream {
      guard self.waiting.first ?? share.stream == share.stream else { return false }
      if !self.hasRoom(for: share) {
        guard self.exception == nil else { return false }
        self.exception = Exception(stream: share.stream, claim: share.claim)
      }
      self.hasAdmitted = true
    } else {
      self.exception?.isDone = false
    }
    share.isAdmitted = true
    // It had no time yet.
    share.moved = share.holding.mayCome + share.holding.missing
    self.recount(&share)
    return true
  }

  private func hasRoom(for share: Share) -> Bool {
    let claim = self.claim(of: share.holding, isAdmitted: true)
    let counted = self.counted
    return claim.large - share.claim.large <= self.limit / 4 - counted.large
      && claim.expected - share.claim.expected <= self.most - counted.expected
  }

  /// Counts an exception that is done like others, if there is room for what it holds.
  private mutating func countException() {
    guard let exception = self.exception, exception.isDone,
      self.counted.came <= self.most - exception.claim.expected
    else { return }
    self.exception = nil
  }

  /// The stream that is to ask again; it stays so until it has.
  package var nextWaiting: Int? { self.waiting.first }

  /// A stream asks no more.
  package mutating func leave(_ share: inout Share) {
    guard share.isWaiting else { return }
    share.isWaiting = false
    self.removeWaiting(share.stream)
  }

  private mutating func removeWaiting(_ stream: Int) {
    if let place = self.waiting.firstIndex(of: stream) { self.waiting.remove(at: place) }
  }

  /// Whether the connection's window, which is due, may open again.
  package mutating func mayOpenWindow(isPoolFull: Bool) -> Bool {
    self.isWindowShut = isPoolFull || self.counted.came > self.most
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
    let exception = self.exception?.stream
    let unfinished = shares.filter {
      $0.holding.came > $0.holding.waiting && $0.stream != exception
    }
    .sorted { ($0.slowFor > 0 ? 1 : 0, $0.stream) > ($1.slowFor > 0 ? 1 : 0, $1.stream) }
    for share in unfinished.dropLast() where left > target {
      left -= share.holding.came - share.holding.waiting
      streams.append(share.stream)
    }
    guard left > self.most, let last = unfinished.last else { return streams }
    // It does not fit by itself. An exception that is whole is waited for.
    if let exception {
      guard shares.contains(where: { $0.stream == exception && !$0.holding.isComplete }) else {
        return streams
      }
      streams.append(exception)
    }
    self.exception = Exception(stream: last.stream, claim: last.claim)
    if last.isWaiting {
      self.removeWaiting(last.stream)
      self.waiting.prepend(last.stream)
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
