internal import GRPCEngineHTTP2
internal import NIOCore

/// What the peer of one connection makes this server hold, and how much more it is let send.
///
/// Counted is what came and has not been taken: headers of calls, parts of messages, whole messages
/// that wait for their servicer. So is what was promised: the rest of messages that the peer may send.
/// That costs nothing yet, and only others of the connection have to wait for it. Counted apart is
/// what costs memory and is not for windows of ours to stop: what goes out and has not left, and room
/// that is reserved for the rest of a message.
///
/// This keeps what came within `limit`, and messages coming:
///
/// - The *connection's window* opens again only while there is room for all of it. So what comes is
///   bounded, whatever a peer does with its streams.
/// - A message larger than a stream's window needs more window than streams begin with. It gets that
///   up to a quarter of the limit, and while there is room for what all streams may send unasked, in the
///   order in which streams ask; the others wait at the window that they have. So a few large messages
///   come at a time, and each of them to its end, also where many streams begin after them. When none of
///   these fits, one may come all the same, and is not counted: a single message can always come.
/// - Those that stand still, or would need long, leave a quarter to others as well, lest these wait for
///   them. Who stands for half a minute while others wait is *ended*.
/// - When all that is left would be halves that wait for one another, the newest are *ended* until
///   there is room. Requests that are whole are waited for instead: somebody will take them.
///
/// A value without I/O: the connection says what happens, and does what is returned.
package struct MemoryAccount {
  /// What one stream costs. The stream keeps it, and the account changes it.
  package struct Share {
    package let stream: Int
    /// Bytes that came and have not been taken.
    package fileprivate(set) var came = 0
    /// Bytes of them in whole messages.
    fileprivate var whole = 0
    /// Bytes that the peer may send.
    fileprivate var mayCome = 0
    /// Those of them beyond the window that every stream has.
    package fileprivate(set) var promised = 0
    /// Bytes of memory beyond what came.
    package fileprivate(set) var besides = 0
    /// Whether the peer has said all that it will.
    package fileprivate(set) var isComplete = false
    package fileprivate(set) var isWaiting = false
    /// Whether its peer has been seen to take a long time for the message that it sends.
    package fileprivate(set) var isSlow = false
    /// Bytes that came since somebody looked whether it is slow.
    fileprivate var moved = 0
    /// How often in a row somebody has looked and nothing had come of what was promised.
    fileprivate var standing = 0
    /// What is counted for it.
    fileprivate var claim = Claim()

    package init(stream: Int) { self.stream = stream }

    /// Bytes that others of the connection wait for.
    package var held: Int { self.came + self.promised }
    /// Bytes in memory.
    package var cost: Int { self.came + self.besides }
  }

  /// What is counted for a stream, or for all of them.
  fileprivate struct Claim {
    /// Bytes that others of the connection wait for.
    var held = 0
    /// Those, and what may come unasked.
    var expected = 0
    /// What is held of a message that comes, beyond the window that every stream has.
    var large = 0
    /// That, if it is slow.
    var slow = 0
    /// What is held of requests that are whole.
    var complete = 0

    static func += (total: inout Self, claim: Self) {
      total.held += claim.held
      total.expected += claim.expected
      total.large += claim.large
      total.slow += claim.slow
      total.complete += claim.complete
    }

    static func -= (total: inout Self, claim: Self) {
      total.held -= claim.held
      total.expected -= claim.expected
      total.large -= claim.large
      total.slow -= claim.slow
      total.complete -= claim.complete
    }
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
  /// The stream whose message comes although there is no room for it, and what is counted for it.
  private var exception: (stream: Int, claim: Claim)?
  /// Streams that need more window, in the order in which they asked.
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

  package var held: Int { self.total.held }

  /// What is counted but for the exception.
  private var counted: Claim {
    var counted = self.total
    if let exception = self.exception { counted -= exception.claim }
    return counted
  }
  private var hasRoom: Bool { self.counted.held <= self.limit - self.window }

  // MARK: Events

  /// A stream holds other amounts than before.
  ///
  /// - Parameters:
  ///   - came: bytes that came and have not been taken.
  ///   - whole: those of them in whole messages.
  ///   - mayCome: bytes that the peer may send.
  ///   - besides: bytes of memory for what goes out and has not left, or for what is promised.
  /// - Returns: by how many bytes more memory is used.
  package mutating func charge(
    _ share: inout Share,
    came: Int,
    whole: Int,
    mayCome: Int,
    besides: Int,
    isComplete: Bool
  ) -> Int {
    let change = came + besides - share.cost
    self.cost += change
    let promised = max(0, mayCome - self.streamWindow)
    self.recount(&share) { share in
      share.moved += max(0, came - share.came)
      share.came = came
      share.whole = whole
      share.mayCome = mayCome
      share.promised = promised
      share.besides = besides
      share.isComplete = isComplete
      // Nothing was promised that others would wait for.
      if promised == 0, share.moved > 0 { share.isSlow = false }
    }
    // Its large message has been taken once no more is left than any stream may hold.
    if self.exception?.stream == share.stream, share.held <= self.streamWindow {
      self.exception = nil
    }
    return change
  }

  @inline(__always)
  private mutating func recount(_ share: inout Share, _ change: (inout Share) -> Void) {
    self.total -= share.claim
    change(&share)
    share.claim = self.claim(of: share)
    self.total += share.claim
    if self.exception?.stream == share.stream { self.exception?.claim = share.claim }
  }

  @inline(__always)
  private func claim(of share: Share) -> Claim {
    let large = share.isComplete ? 0 : max(0, share.held - share.whole - self.streamWindow)
    return Claim(
      held: share.held,
      expected: share.isSlow ? share.held : share.came + share.mayCome,
      large: large,
      slow: share.isSlow ? large : 0,
      complete: share.isComplete ? share.held : 0
    )
  }

  /// Looks how much of a stream came since the last time: one for which more than a minute would pass is
  /// slow. To be called once a second for all streams while one waits.
  ///
  /// - Returns: whether it has stood still for so long that it is to end.
  package mutating func look(_ share: inout Share) -> Bool {
    guard !share.isComplete else { return false }
    let isShut = self.isWindowShut
    self.recount(&share) { share in
      // Whom this server lets send nothing is not slow, and gets a second from then on.
      if !isShut, !share.isWaiting, share.moved <= share.promised / Self.secondsForMessage {
        share.isSlow = true
      }
      share.standing = share.moved == 0 && share.promised > 0 ? share.standing + 1 : 0
      share.moved = isShut ? max(1, share.promised) : 0
    }
    // A slow one is no reason to let no other come, if there is room for all of it.
    if share.isSlow, self.exception?.stream == share.stream,
      self.total.large <= self.limit / 2, self.total.expected <= self.limit - self.window
    {
      self.exception = nil
    }
    return share.standing >= Self.secondsToStand
  }

  private static var secondsForMessage: Int { 64 }
  private static var secondsToStand: Int { 30 }

  /// Whether a call with headers of `size` bytes may begin.
  package func mayBegin(_ size: Int) -> Bool { self.counted.held <= self.limit - size }

  /// Whether the window of a stream may open for `growth` bytes more than others; otherwise it has its
  /// turn later, as `nextWaiting`.
  ///
  /// - Parameter isPoolFull: whether all connections together hold too much.
  package mutating func mayGrow(_ share: inout Share, by growth: Int, isPoolFull: Bool) -> Bool {
    let isFirst = share.isWaiting ? self.waiting.first == share.stream : self.waiting.isEmpty
    if isFirst, !isPoolFull, self.admit(share, growth) {
      self.leave(&share)
      // It had no time yet.
      self.recount(&share) { share in
        share.isSlow = false
        share.moved = growth
      }
      return true
    }
    if !share.isWaiting {
      share.isWaiting = true
      self.waiting.append(share.stream)
    }
    return false
  }

  private mutating func admit(_ share: Share, _ growth: Int) -> Bool {
    let counted = self.counted
    if growth <= self.limit / 4 - (counted.large - counted.slow),
      growth <= self.limit / 2 - counted.large,
      growth <= self.limit - self.window - counted.expected
    {
      return true
    }
    guard self.exception == nil, self.held - share.held <= self.limit - self.window else {
      return false
    }
    self.exception = (share.stream, share.claim)
    return true
  }

  /// The stream that is to ask again; it stays so until it has.
  package var nextWaiting: Int? { self.waiting.first }

  /// A stream asks no more.
  package mutating func leave(_ share: inout Share) {
    guard share.isWaiting else { return }
    share.isWaiting = false
    if let place = self.waiting.firstIndex(of: share.stream) { self.waiting.remove(at: place) }
  }

  /// Whether the connection's window, which is due, may open again.
  package mutating func mayOpenWindow(isPoolFull: Bool) -> Bool {
    self.isWindowShut = isPoolFull || !self.hasRoom
    return !self.isWindowShut
  }

  // MARK: Streams that have to end

  /// Whether what waits will wait for ever: no request that is whole will make room for it.
  package var isStuck: Bool {
    self.isTight && self.counted.held - self.total.complete > self.limit - self.window
  }

  /// Whom to end so that others can go on, slow ones and then the newest first; none unless the account
  /// is stuck. One stays always, the oldest that is not slow, if any; it may come then whatever its size.
  ///
  /// - Parameter shares: those of all streams.
  package mutating func streamsInTheWay(_ shares: some Sequence<Share>) -> [Int] {
    guard self.isStuck else { return [] }
    // Some more than must be, so that the next one does not have to look through all of them.
    let target = (self.limit - self.window) / 4 * 3
    var left = self.counted.held - self.total.complete
    var streams: [Int] = []
    let holding = shares.filter { $0.held > 0 && !$0.isComplete }
      .sorted { ($0.isSlow ? 1 : 0, $0.stream) > ($1.isSlow ? 1 : 0, $1.stream) }
    let exception = self.exception?.stream
    for share in holding.dropLast() where left > target && share.stream != exception {
      left -= share.held
      streams.append(share.stream)
    }
    guard left > self.limit - self.window, let last = holding.last, last.stream != exception else {
      return streams
    }
    if let exception {
      // One that is whole is waited for.
      guard holding.contains(where: { $0.stream == exception }) else { return streams }
      streams.append(exception)
    }
    self.exception = (last.stream, last.claim)
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
    let holding = shares.filter { $0.cost > 0 }.sorted { $0.stream > $1.stream }
    for share in isOnlyHolder ? holding.dropLast() : holding[...] where left > target {
      left -= share.cost
      streams.append(share.stream)
    }
    return streams
  }
}
