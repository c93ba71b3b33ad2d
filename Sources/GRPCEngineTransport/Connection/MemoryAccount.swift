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
/// - A message larger than a stream's window needs more window than streams begin with. One stream at a
///   time *leads*: its window is as large as the connection's until its message has come, and it is not
///   counted. So some message always comes to its end, whatever its size and whatever others hold.
/// - The others get twice what has come of their message, up to a quarter of the limit together, and
///   while there is room for what all streams may send: so those that stand still hold little, and
///   many that begin later fit. When there is no room they wait, in the order in which they asked, for
///   room or for the lead.
/// - A leader that is slow is counted like others as soon as it fits, and the next one leads. Who stands
///   with more than other streams may send, for half a minute while others wait, is *ended*.
/// - When all that is left would be halves that wait for one another, the newest are *ended* until
///   there is room. Requests that are whole are waited for instead: somebody will take them.
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
    /// Bytes in memory.
    package var cost: Int { self.came + self.besides }
  }

  /// The account's note of one stream. The stream keeps it, and the account changes it.
  package struct Share {
    package let stream: Int
    package fileprivate(set) var holding = Holding()
    package fileprivate(set) var isWaiting = false
    /// Bytes that came since somebody looked at its pace.
    fileprivate var moved = 0
    /// How often in a row somebody has looked and next to nothing had come of what was let come.
    fileprivate var standing = 0
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
    /// What came of requests that are whole.
    var complete = 0

    static func += (total: inout Self, claim: Self) {
      total.came += claim.came
      total.expected += claim.expected
      total.large += claim.large
      total.complete += claim.complete
    }

    static func -= (total: inout Self, claim: Self) {
      total.came -= claim.came
      total.expected -= claim.expected
      total.large -= claim.large
      total.complete -= claim.complete
    }
  }

  /// The stream whose message comes although there may be no room for it.
  private struct Leader {
    let stream: Int
    var claim: Claim
    /// Whether its message has come, or takes its time: another is to lead.
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
  private var leader: Leader?
  /// Streams that need more window, in the order in which they asked; the leader before them.
  private var waiting = CircularBuffer<Int>()
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

  /// What is counted but for the leader.
  private var counted: Claim {
    var counted = self.total
    if let leader = self.leader { counted -= leader.claim }
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
    self.total -= share.claim
    share.claim = self.claim(of: holding)
    self.total += share.claim
    if self.leader?.stream == share.stream {
      self.leader?.claim = share.claim
      // Its message has been taken, or it is gone.
      if holding.whole == 0, holding.partial == 0 { self.leader = nil }
    }
    return change
  }

  @inline(__always)
  private func claim(of holding: Holding) -> Claim {
    Claim(
      came: holding.came,
      expected: holding.expected,
      large: holding.isComplete ? 0 : max(0, holding.partial + holding.mayCome - self.streamWindow),
      complete: holding.isComplete ? holding.came : 0
    )
  }

  /// A message of a stream has come as a whole.
  @inline(__always)
  package mutating func completed(_ share: Share) {
    if self.leader?.stream == share.stream { self.leader?.isDone = true }
  }

  /// Looks how much of a stream came since the last time. To be called once a second for all streams
  /// while one waits.
  ///
  /// - Returns: whether it has stood still for so long that it is to end.
  package mutating func look(_ share: inout Share) -> Bool {
    // Whom this server lets send nothing is not slow, and gets a second from then on.
    let mayCome = share.holding.mayCome
    let mayMove = share.claim.large > 0 && mayCome > 0 && !share.isWaiting && !self.isWindowShut
    if mayMove, share.moved < mayCome / Self.secondsToLead, self.leader?.stream == share.stream {
      self.leader?.isDone = true
    }
    let isStanding = mayMove && share.moved <= mayCome / Self.secondsToMove
    share.standing = isStanding ? share.standing + 1 : 0
    share.moved = self.isWindowShut ? mayCome : 0
    return share.standing >= Self.secondsToStand
  }

  /// In how many seconds a leader must send what it may.
  private static var secondsToLead: Int { 64 }
  /// Who would need longer than this for what it may send stands still.
  private static var secondsToMove: Int { 4096 }
  private static var secondsToStand: Int { 30 }

  /// Whether a call with headers of `size` bytes may begin.
  package func mayBegin(_ size: Int) -> Bool { self.counted.came <= self.limit - size }

  /// How far the window of a stream may open for a message of which `partial` bytes have come, if there
  /// is room.
  package func openness(_ share: Share, partial: Int) -> Int {
    if self.leader.map({ $0.stream == share.stream }) ?? true { return self.window }
    return min(2 * partial, self.window)
  }

  /// Whether the window of a stream may open for `growth` bytes more; otherwise it has its turn later,
  /// as `nextWaiting`.
  ///
  /// - Parameter isPoolFull: whether all connections together hold too much.
  package mutating func mayGrow(_ share: inout Share, by growth: Int, isPoolFull: Bool) -> Bool {
    if !isPoolFull, self.admit(share, growth) {
      self.leave(&share)
      // It had no time yet.
      share.moved = share.holding.mayCome + growth
      return true
    }
    guard !share.isWaiting else { return false }
    share.isWaiting = true
    if self.leader?.stream == share.stream {
      self.waiting.prepend(share.stream)
    } else {
      self.waiting.append(share.stream)
    }
    return false
  }

  private mutating func admit(_ share: Share, _ growth: Int) -> Bool {
    self.passLead()
    if self.leader?.stream == share.stream { return true }
    guard self.waiting.first ?? share.stream == share.stream else { return false }
    guard self.leader != nil else {
      self.leader = Leader(stream: share.stream, claim: share.claim)
      return true
    }
    let counted = self.counted
    return growth <= self.limit / 4 - counted.large && growth <= self.most - counted.expected
  }

  /// Counts a leader that is done like others, if there is room for it.
  private mutating func passLead() {
    guard self.leader?.isDone == true, self.total.came <= self.most,
      self.total.large <= self.limit / 2
    else { return }
    self.leader = nil
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
    return counted.came - counted.complete
  }

  /// Whether what waits will wait for ever: no request that is whole will make room for it.
  package var isStuck: Bool { self.isTight && self.unfinished > self.most }

  /// Whom to end so that others can go on, those that stand and then the newest first; none unless the
  /// account is stuck. One stays always, the oldest that moves, if any; it leads if it is too large.
  ///
  /// - Parameter shares: those of all streams.
  package mutating func streamsInTheWay(_ shares: some Sequence<Share>) -> [Int] {
    guard self.isStuck else { return [] }
    // Some more than must be, so that the next one does not have to look through all of them.
    let target = self.most / 4 * 3
    var left = self.unfinished
    var streams: [Int] = []
    let leader = self.leader?.stream
    let unfinished = shares.filter {
      $0.holding.came > 0 && !$0.holding.isComplete && $0.stream != leader
    }
    .sorted { ($0.standing > 0 ? 1 : 0, $0.stream) > ($1.standing > 0 ? 1 : 0, $1.stream) }
    for share in unfinished.dropLast() where left > target {
      left -= share.holding.came
      streams.append(share.stream)
    }
    guard left > self.most, let last = unfinished.last else { return streams }
    // It does not fit by itself. A leader that is whole is waited for.
    if let leader {
      guard shares.contains(where: { $0.stream == leader && !$0.holding.isComplete }) else {
        return streams
      }
      streams.append(leader)
    }
    self.leader = Leader(stream: last.stream, claim: last.claim)
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
