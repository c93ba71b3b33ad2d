import GRPCEngineStatistics
import GRPCEngineTransport
import NIOCore
import Testing

struct MemoryAccountTests {
  private static let kib = 1 << 10
  private static let mib = 1 << 20

  /// A connection of the model: what peer and servicers do, and what the account says to it.
  private struct Model {
    struct Stream {
      var share: MemoryAccount.Share
      var window: ReceiveWindow
      /// The rest of the message that the peer is sending, or wants to.
      var missing: Int
      var partial = 0
      var isComplete = false

      var holding: MemoryAccount.Holding {
        var holding = MemoryAccount.Holding()
        holding.whole = self.window.held
        holding.partial = self.partial
        holding.missing = self.partial > 0 ? self.missing : 0
        holding.mayCome = self.isComplete ? 0 : max(0, self.window.remaining)
        holding.isComplete = self.isComplete
        return holding
      }
    }

    static let streamWindow = 64 * kib
    let streamWindow: Int
    var account: MemoryAccount
    var streams: [Int: Stream] = [:]
    var connectionWindow: Int
    var nextStream = 1
    var ended: [Int] = []
    var poolFull = false
    /// What all connections together are told.
    var told = 0

    init(limit: Int, window: Int = mib, streamWindow: Int = Self.streamWindow) {
      self.streamWindow = streamWindow
      self.account = MemoryAccount(limit: limit, window: window, streamWindow: streamWindow)
      self.connectionWindow = self.account.window
    }

    /// Bytes that are in memory, promises not counted.
    var real: Int { self.streams.values.reduce(0) { $0 + $1.holding.came } }

    mutating func open(message: Int) {
      let window = ReceiveWindow(target: self.account.streamWindow)
      let share = MemoryAccount.Share(stream: self.nextStream)
      self.streams[self.nextStream] = Stream(share: share, window: window, missing: message)
      self.charge(self.nextStream)
      self.nextStream += 2
    }

    /// The peer sends as much of a message as windows allow, up to `most`.
    ///
    /// - Returns: how much that was.
    @discardableResult
    mutating func receive(_ id: Int, atMost most: Int = 16 * kib) -> Int {
      guard var stream = self.streams[id], !stream.isComplete else { return 0 }
      let length = min(most, stream.missing, stream.window.remaining, self.connectionWindow)
      guard length > 0 else { return 0 }
      self.connectionWindow -= length
      stream.window.received(length)
      stream.missing -= length
      stream.partial += length
      if stream.missing == 0 {
        stream.isComplete = true
        stream.window.delivered(stream.partial)
        stream.partial = 0
        self.account.completed(&stream.share)
      }
      self.streams[id] = stream
      self.charge(id)
      self.grant(id)
      self.reopen()
      self.review()
      return length
    }

    /// Streams before one send, as far as they may, until so much has come of their messages.
    mutating func send(upTo most: Int, from first: Int = 0, before end: Int) {
      for id in self.streams.keys.sorted() where (first..<end).contains(id) {
        while let came = self.streams[id]?.partial, came < most,
          self.receive(id, atMost: min(most - came, 16 * kib)) > 0
        {}
      }
    }

    /// All streams send, as far as they may, all but the last byte of their messages.
    mutating func sendAllButLastBytes() {
      for id in self.streams.keys.sorted() {
        while let missing = self.streams[id]?.missing, missing > 1,
          self.receive(id, atMost: missing - 1) > 0
        {}
      }
    }

    /// The servicer takes a message.
    mutating func consume(_ id: Int) {
      guard let held = self.streams[id]?.window.held, held > 0 else { return }
      self.streams[id]?.window.consumed(held)
      self.charge(id)
      self.review()
    }

    mutating func close(_ id: Int) {
      guard var stream = self.streams.removeValue(forKey: id) else { return }
      self.forget(&stream)
      self.review()
    }

    private mutating func end(_ id: Int) {
      self.ended.append(id)
      if var stream = self.streams.removeValue(forKey: id) { self.forget(&stream) }
    }

    private mutating func forget(_ stream: inout Stream) {
      self.account.leave(&stream.share)
      var nothing = MemoryAccount.Holding()
      nothing.isComplete = true
      self.told += self.account.charge(&stream.share, nothing)
    }

    private mutating func charge(_ id: Int) {
      guard var stream = self.streams[id] else { return }
      self.told += self.account.charge(&stream.share, stream.holding)
      self.streams[id] = stream
    }

    private mutating func grant(_ id: Int) {
      guard var stream = self.streams[id] else { return }
      if !stream.isComplete {
        let missing = stream.holding.missing
        stream.window.open(by: stream.window.increment(partial: stream.partial, missing: missing))
        let growth = self.growth(stream)
        if growth > 0,
          self.account.mayGrow(
            &stream.share,
            by: growth,
            mayWait: stream.window.isNearlyUsed,
            isPoolFull: self.poolFull
          )
        {
          stream.window.open(by: self.growth(stream))
        }
      }
      self.streams[id] = stream
      self.charge(id)
    }

    private func growth(_ stream: Stream) -> Int {
      let openness = self.account.openness(stream.share, partial: stream.partial)
      return stream.window.growth(missing: stream.holding.missing, openness: openness)
    }

    private mutating func reopen() {
      if self.account.adaptStreamWindow() {
        for id in self.streams.keys {
          self.streams[id]?.window.change(to: self.account.streamWindow)
          self.charge(id)
        }
        for id in self.streams.keys.sorted() { self.grant(id) }
      }
      guard self.connectionWindow < self.account.window / 2,
        self.account.mayOpenWindow(isPoolFull: self.poolFull)
      else { return }
      self.connectionWindow = self.account.window
    }

    /// A second passes.
    mutating func look() {
      guard self.account.isTight else { return }
      for id in self.streams.keys {
        guard var stream = self.streams[id] else { continue }
        self.account.look(&stream.share)
        if !stream.isComplete, !self.poolFull {
          let probe = self.account.probe(&stream.share)
          if probe > 0 { stream.window.open(by: stream.window.increment(for: probe)) }
        }
        self.streams[id] = stream
        self.charge(id)
      }
      let shares = self.streams.values.map(\.share)
      for id in self.account.endStarvation(shares, isPoolFull: self.poolFull) { self.end(id) }
      self.review()
    }

    /// A stream is no unary call, and another message comes.
    mutating func goOn(_ id: Int, message: Int) {
      self.streams[id]?.isComplete = false
      self.streams[id]?.missing = message
      self.charge(id)
    }

    /// Streams from one on send all that they may, in turn, and servicers take what is whole.
    mutating func finish(from first: Int = 0, atMost most: Int = 16 * kib) {
      var moved = true
      while moved {
        moved = false
        for id in self.streams.keys.sorted() where id >= first {
          moved = self.receive(id, atMost: most) > 0 || moved
          if self.streams[id]?.isComplete == true {
            self.consume(id)
            self.close(id)
            moved = true
          }
        }
      }
    }

    mutating func review() {
      let shares = self.account.isStuck ? self.streams.values.map(\.share) : []
      for id in self.account.streamsInTheWay(shares) { self.end(id) }
      for pace in MemoryAccount.Pace.allCases {
        while let id = self.account.nextWaiting(pace) {
          #expect(self.streams[id] != nil, "nobody waits who is gone")
          self.grant(id)
          guard var stream = self.streams[id], stream.share.isWaiting else { continue }
          if !stream.isComplete, self.growth(stream) > 0 { break }
          self.account.leave(&stream.share)
          self.streams[id] = stream
        }
      }
      self.reopen()
    }
  }

  @Test("Few large messages come at a time, each to its end, and none is lost")
  func goodPeer() {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<100 { model.open(message: 4 * Self.mib) }
    var most = 0
    var moved = true
    while moved, !model.streams.isEmpty {
      moved = false
      for id in model.streams.keys.sorted() {
        moved = model.receive(id, atMost: Self.mib / 4) > 0 || moved
        most = max(most, model.real)
        if model.streams[id]?.isComplete == true {
          model.consume(id)
          model.close(id)
        }
      }
    }
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
    #expect(most <= (32 + 4) * Self.mib)
    #expect(model.account.came == 0)
  }

  @Test(
    "However many messages come at a time, none is ended for their beginnings",
    arguments: [(600, 100), (1200, 70), (2000, 16)]
  )
  func burst(streams: Int, kib: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<streams { model.open(message: kib * Self.kib) }
    model.finish()
    #expect(model.ended.isEmpty)
    #expect(model.streams.isEmpty)
    #expect(!model.account.isStreamWindowLowered, "all is as it was")
  }

  @Test(
    "Beginnings that stand still hold up others for some seconds",
    arguments: [(10, 1), (480, 32)]
  )
  func standingBeginnings(count: Int, limit: Int) {
    var model = Model(limit: limit * Self.mib)
    for _ in 0..<count { model.open(message: 60 * Self.kib) }
    let good = model.nextStream
    for second in 0..<8 {
      while model.nextStream < good + 20 * (second + 1) {
        model.open(message: (1 + model.nextStream % 99) * Self.kib)
      }
      // All that have something to send do so in turn.
      var moved = true
      while moved {
        moved = false
        for id in model.streams.keys.sorted() {
          let most = id < good ? (18 + 39 * (id / 2) / count) * Self.kib : .max
          let left = most - (model.streams[id]?.partial ?? 0)
          moved = model.receive(id, atMost: min(left, 16 * Self.kib)) > 0 || moved
          guard model.streams[id]?.isComplete == true else { continue }
          model.consume(id)
          model.close(id)
        }
      }
      model.look()
    }
    #expect(model.streams.keys.filter { $0 >= good }.count <= 10)
    model.finish(from: good)
    #expect(!model.streams.keys.contains { $0 >= good }, "all others have come")
    #expect(model.ended.isEmpty)
  }

  @Test("A peer that sends first what has come on least, over a thin line, has none ended")
  func unevenTurns() {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<700 { model.open(message: 60 * Self.kib) }
    for _ in 0..<20 {
      var left = 3 * Self.mib
      // As nghttp2 does: whoever may go on again goes before those that are further.
      while left > 0,
        let (id, _) = model.streams.filter({ $0.value.window.remaining > 0 })
          .min(by: { ($0.value.partial, $0.key) < ($1.value.partial, $1.key) })
      {
        left -= max(model.receive(id), Self.kib)
        guard model.streams[id]?.isComplete == true else { continue }
        model.consume(id)
        model.close(id)
      }
      model.look()
    }
    model.finish()
    #expect(model.ended.isEmpty)
    #expect(model.streams.isEmpty)
  }

  @Test("Streams begin with less only while much has come")
  func streamWindow() {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<800 { model.open(message: 100 * Self.kib) }
    model.send(upTo: Self.kib, before: .max)
    #expect(!model.account.isStreamWindowLowered)
    model.send(upTo: 6 * Self.kib, before: .max)
    #expect(model.account.isStreamWindowLowered)
    #expect(model.account.streamWindow * 800 <= 8 * Self.mib)
    model.send(upTo: 100 * Self.kib, before: .max)
    #expect(model.streams.values.reduce(0) { $0 + $1.partial } <= 20 * Self.mib)
    for id in model.streams.keys.sorted().dropLast(10) { model.close(id) }
    #expect(!model.account.isStreamWindowLowered)
  }

  @Test("Headers of calls that stay keep no message from coming")
  func headersThatStay() {
    var account = MemoryAccount(limit: 1 << 20, window: 1 << 18, streamWindow: 1 << 16)
    var shares: [MemoryAccount.Share] = []
    while account.mayBegin(8000) {
      var share = MemoryAccount.Share(stream: 2 * shares.count + 1)
      var holding = MemoryAccount.Holding()
      holding.headers = 8000
      holding.isComplete = true
      _ = account.charge(&share, holding)
      shares.append(share)
    }
    #expect(shares.count == (1 << 20) / 8000)
    let mayOpen = account.mayOpenWindow(isPoolFull: false)
    #expect(mayOpen)
    var nothing = MemoryAccount.Holding()
    nothing.isComplete = true
    for index in shares.indices { _ = account.charge(&shares[index], nothing) }
    #expect(account.mayBegin(8000))
  }

  @Test("Messages that wait for their servicers keep no call from beginning")
  func beginning() {
    var model = Model(limit: 8 * Self.mib)
    for _ in 0..<1000 { model.open(message: 60 * Self.kib) }
    while let id = model.streams.keys.sorted().first(where: { model.receive($0) > 0 }) { _ = id }
    #expect(model.account.isWindowShut)
    #expect(model.account.mayBegin(16 * Self.kib))
  }

  @Test("Messages that wait for their servicers shut the window, and are not ended")
  func busyServicers() {
    var model = Model(limit: 8 * Self.mib)
    for _ in 0..<1000 { model.open(message: 60 * Self.kib) }
    while let id = model.streams.keys.sorted().first(where: { model.receive($0) > 0 }) { _ = id }
    #expect(model.real <= 8 * Self.mib)
    #expect(model.account.isWindowShut)
    #expect(model.ended.isEmpty)
    // They are taken, one by one, and the others come.
    var taken = 0
    while let id = model.streams.keys.sorted().first(where: {
      model.streams[$0]?.isComplete == true
    }) {
      model.consume(id)
      model.close(id)
      taken += 1
      while model.streams.keys.sorted().contains(where: { model.receive($0) > 0 }) {}
    }
    #expect(taken == 1000)
    #expect(model.ended.isEmpty)
  }

  @Test("One message may come whatever its size", arguments: [1, 33, 100, 2047])
  func oneLargeMessage(mebibytes: Int) {
    var model = Model(limit: 32 * Self.mib)
    model.open(message: mebibytes * Self.mib)
    while model.receive(1, atMost: 1 << 18) > 0 {}
    #expect(model.streams[1]?.isComplete == true)
    #expect(model.ended.isEmpty)
    model.consume(1)
    #expect(model.account.came == 0)
  }

  @Test("Halves that wait for one another end from the newest on")
  func halves() {
    // However little they begin with, it is too much for so many.
    var model = Model(limit: Self.mib)
    for _ in 0..<5000 { model.open(message: 255) }
    model.sendAllButLastBytes()
    #expect(!model.ended.isEmpty)
    #expect(model.ended.allSatisfy { $0 > 1 })
    #expect(model.streams[1] != nil, "the oldest stays")
    #expect(model.real <= Self.mib)
    for id in model.streams.keys.sorted() {
      model.receive(id)
      #expect(model.streams[id]?.isComplete == true)
    }
  }

  @Test("Halves of messages that windows keep from coming end for nobody")
  func halvesThatWait() {
    var model = Model(limit: 4 * Self.mib)
    for _ in 0..<200 { model.open(message: 60 * Self.kib) }
    model.sendAllButLastBytes()
    #expect(model.ended.isEmpty)
    #expect(model.real <= 4 * Self.mib)
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
  }

  @Test("What a peer may send costs nothing until it comes")
  func promises() {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<4 { model.open(message: 3 * Self.mib) }
    for id in model.streams.keys { model.receive(id) }
    for id in model.streams.keys { model.receive(id) }
    #expect(model.account.came == 4 * 32 * Self.kib)
    #expect(model.told == model.account.came)
  }

  @Test(
    "More than fit come in turn, and none is ended",
    arguments: [(300, 64 * kib), (25, mib)]
  )
  func manyAtOnce(count: Int, streamWindow: Int) {
    var model = Model(limit: 32 * Self.mib, streamWindow: streamWindow)
    for _ in 0..<count { model.open(message: 4 * Self.mib) }
    // The first ones go first: they are promised their messages before the others have begun.
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
  }

  @Test(
    "Who stands still holds others up for a second, and ends only where memory runs out",
    arguments: [
      (1, 33 * kib, 0, false), (200, 33 * kib, 2, false), (40, 64 * kib, 4, false),
      (150, 60 * kib, 4, false), (300, 64 * kib, 4, false),
      (3, mib, 2, false), (9, mib, 20, false), (5, 3900 * kib, 10, false),
      (40, 3 * mib, 300, true),
    ]
  )
  func stalled(count: Int, sent: Int, seconds: Int, areEnded: Bool) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count { model.open(message: 4 * Self.mib) }
    // Some of them wait at their windows, and stand as soon as they may go on.
    let good = model.nextStream
    model.send(upTo: sent, before: good)
    for _ in 0..<20 { model.open(message: Self.mib) }
    model.finish(from: good)
    for _ in 0..<seconds {
      model.look()
      model.send(upTo: sent, before: good)
      model.finish(from: good)
    }
    #expect(model.streams.keys.allSatisfy { $0 < good }, "all others have come")
    #expect(model.ended.allSatisfy { $0 < good })
    #expect(model.ended.isEmpty != areEnded)
    // The others come after all.
    let ended = model.ended.count
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.count == ended)
    #expect(model.account.came == 0)
  }

  @Test("Who comes on by bytes while it waits is passed, too", arguments: [100, 300])
  func bytes(count: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count { model.open(message: 4 * Self.mib) }
    let good = model.nextStream
    model.send(upTo: 50_000, before: good)
    for second in 0..<10 {
      if second == 3 { for _ in 0..<6 { model.open(message: 4 * Self.mib) } }
      for id in model.streams.keys.sorted() where id < good { model.receive(id, atMost: 1) }
      model.finish(from: good)
      model.look()
    }
    #expect(model.streams.keys.allSatisfy { $0 < good }, "all others have come")
    #expect(model.ended.isEmpty)
  }

  @Test("Streams that have nothing to send yet keep nobody from a turn")
  func idleStreams() {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<490 { model.open(message: Self.kib) }
    let stalled = model.nextStream
    for _ in 0..<10 { model.open(message: 4 * Self.mib) }
    let good = model.nextStream
    for _ in 0..<20 {
      model.send(upTo: 64 * Self.kib, from: stalled, before: good)
      if model.nextStream == good { for _ in 0..<3 { model.open(message: 4 * Self.mib) } }
      model.finish(from: good)
      model.look()
    }
    #expect(model.streams.keys.allSatisfy { $0 < good }, "all others have come")
    #expect(model.ended.isEmpty)
  }

  @Test("Many good messages over a thin line leave room for small ones", arguments: [50, 100])
  func thinLine(count: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count { model.open(message: 4 * Self.mib) }
    let small = model.nextStream
    for second in 0..<90 {
      if second % 5 == 4 { for _ in 0..<30 { model.open(message: 60 * Self.kib) } }
      var left = 2 * Self.mib
      var moved = true
      while left > 0, moved {
        moved = false
        for id in model.streams.keys.sorted() {
          let length = model.receive(id, atMost: min(left, 4 * Self.kib))
          (left, moved) = (left - length, moved || length > 0)
          guard model.streams[id]?.isComplete == true else { continue }
          model.consume(id)
          model.close(id)
        }
      }
      model.look()
    }
    #expect(model.ended.isEmpty)
    #expect(model.streams.keys.filter { $0 >= small }.count <= 30)
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
  }

  @Test("Whatever fits passes what is larger than the quarter", arguments: [2, 5])
  func oversize(count: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count { model.open(message: 60 * Self.mib) }
    let good = model.nextStream
    for second in 1...100 {
      model.send(upTo: second * 600 * Self.kib, before: good)
      model.open(message: 2 * Self.mib)
      model.finish(from: good)
      #expect(model.streams.count <= count + (second < 3 ? second : 0))
      model.look()
    }
    #expect(model.ended.isEmpty)
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
  }

  @Test("Many that are slow hold up nobody", arguments: [1, 10, 40])
  func slow(count: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count {
      model.open(message: 4 * Self.mib)
      for _ in 0..<3 { model.receive(model.nextStream - 2) }
    }
    let good = model.nextStream
    for _ in 0..<20 { model.open(message: 4 * Self.mib) }
    for _ in 0..<3 {
      for id in 0..<good { model.receive(id, atMost: 4 * Self.kib) }
      model.finish(from: good)
      model.look()
    }
    #expect(model.streams.keys.allSatisfy { $0 < good }, "all others have come")
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
  }

  @Test(
    "Nobody waits for more slow ones than fit",
    arguments: [
      (20, 50 * kib), (20, 4 * kib), (100, 20 * kib), (5, 100 * kib), (7, 150 * kib),
      (12, 300 * kib),
    ]
  )
  func slowLane(count: Int, pace: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count { model.open(message: 4 * Self.mib) }
    let good = model.nextStream
    var late = 0
    for _ in 0..<60 {
      for id in model.streams.keys.sorted() where id < good {
        var left = pace
        while left > 0 {
          let length = model.receive(id, atMost: min(left, 16 * Self.kib))
          if length == 0 { break }
          left -= length
        }
        guard model.streams[id]?.isComplete == true else { continue }
        model.consume(id)
        model.close(id)
      }
      model.open(message: 4 * Self.mib)
      model.finish(from: good, atMost: Self.mib / 4)
      if model.streams.keys.contains(where: { $0 >= good }) { late += 1 }
      model.look()
    }
    #expect(late <= 12, "nobody knows at first who is slow")
    #expect(model.ended.isEmpty)
    #expect(model.streams.count < count || pace * 60 < 4 * Self.mib, "they come too")
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
  }

  @Test(
    "Whoever takes long with how much of what is passed",
    arguments: [
      // A message within the window of every stream, after small ones; the last bytes of one; more than
      // the quarter; five that are almost whole.
      (1, 60 * kib, 30 * kib, 0), (1, 4 * mib, 4 * mib - 60, 0), (1, 40 * mib, 20 * mib, 1000),
      (5, 4 * mib, 4 * mib - 100 * kib, 50),
    ]
  )
  func slowest(count: Int, size: Int, sent: Int, pace: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count {
      model.open(message: 20 * Self.kib)
      let id = model.nextStream - 2
      while model.receive(id) > 0 {}
      model.goOn(id, message: size)
      model.consume(id)
    }
    let good = model.nextStream
    for second in 0..<3 * count {
      model.send(upTo: sent, before: good)
      model.look()
      if second == count { for _ in 0..<6 { model.open(message: 4 * Self.mib - Self.kib) } }
    }
    for second in 1..<10 {
      model.send(upTo: sent + second * pace, before: good)
      model.finish(from: good)
      model.look()
    }
    #expect(model.streams.keys.allSatisfy { $0 < good }, "all others have come")
    #expect(model.ended.isEmpty)
    model.finish()
    #expect(model.streams.isEmpty)
  }

  @Test(
    "Who moves for a second in every thirty ends where memory runs out",
    arguments: [(10, 300), (10, 1000), (30, 1000)]
  )
  func seldom(count: Int, pace: Int) {
    var model = Model(limit: 32 * Self.mib)
    let good = 2 * count + 1
    let sent = 4 * Self.mib - 100 * Self.kib
    for _ in 0..<count { model.open(message: 4 * Self.mib) }
    for second in 0..<70 {
      for id in model.streams.keys.sorted() where id < good && (second + 27 - id / 6) % 27 == 0 {
        while let came = model.streams[id]?.partial, came < sent + second * pace,
          model.receive(id, atMost: min(sent + second * pace - came, 16 * Self.kib)) > 0
        {}
      }
      if second == 30 { for _ in 0..<3 { model.open(message: 4 * Self.mib) } }
      model.look()
      model.finish(from: good)
    }
    #expect(model.streams.keys.allSatisfy { $0 < good }, "all others have come")
    #expect(model.ended.allSatisfy { $0 < good })
  }

  @Test("Who has stood still and goes on is no longer in the way")
  func goesOn() {
    var account = MemoryAccount(limit: Self.mib, window: Self.mib, streamWindow: 65_535)
    var share = MemoryAccount.Share(stream: 1)
    var holding = MemoryAccount.Holding()
    (holding.partial, holding.missing, holding.mayCome) = (1000, 1000, 1000)
    _ = account.charge(&share, holding)
    for _ in 0..<40 { account.look(&share) }
    // The rest of its message comes and is taken, and then it is idle.
    holding.partial = 2000
    _ = account.charge(&share, holding)
    account.completed(&share)
    _ = account.charge(&share, MemoryAccount.Holding())
    var other = MemoryAccount.Share(stream: 3)
    #expect(!account.mayGrow(&other, by: 1, mayWait: true, isPoolFull: true))
    for _ in 0..<100 {
      account.look(&share)
      #expect(account.endStarvation([share, other], isPoolFull: false).isEmpty)
    }
  }

  /// Streams without windows of their own, for what an order of events does to the account.
  private struct Bare {
    var account: MemoryAccount
    var shares: [MemoryAccount.Share]

    init(limit: Int, count: Int) {
      self.account = MemoryAccount(limit: limit, window: mib, streamWindow: 64 * kib)
      self.shares = (0..<count).map { MemoryAccount.Share(stream: 2 * $0 + 1) }
    }

    mutating func charge(_ index: Int, whole: Int = 0, partial: Int = 0, missing: Int = 0) {
      var holding = MemoryAccount.Holding()
      (holding.whole, holding.partial) = (whole, partial)
      (holding.missing, holding.mayCome) = (missing, missing > 0 ? 1000 : 0)
      _ = self.account.charge(&self.shares[index], holding)
    }

    mutating func asks(_ index: Int) -> Bool {
      self.account.mayGrow(&self.shares[index], by: 1000, mayWait: true, isPoolFull: false)
    }

    mutating func look() -> [Int] {
      for index in self.shares.indices { self.account.look(&self.shares[index]) }
      return self.account.endStarvation(self.shares, isPoolFull: false)
    }
  }

  @Test("Exceptions that have changed their paces change places")
  func crossedExceptions() {
    var bare = Bare(limit: 4 * Self.mib, count: 4)
    // Nobody else has room, and somebody waits.
    bare.charge(0, whole: 3 * Self.mib)
    bare.charge(3, partial: 60 * Self.kib, missing: Self.mib)
    bare.charge(1, partial: 100 * Self.kib, missing: Self.mib)
    bare.charge(2, partial: 100 * Self.kib, missing: Self.mib)
    let mayFirstGo = bare.asks(1)
    #expect(mayFirstGo)
    let mayWaiterGo = bare.asks(3)
    #expect(!mayWaiterGo)
    for _ in 0..<2 {
      bare.charge(1, partial: bare.shares[1].holding.partial + Self.mib / 2, missing: Self.mib)
      _ = bare.look()
    }
    #expect(bare.shares[2].pace == .slow)
    let maySecondGo = bare.asks(2)
    #expect(maySecondGo)
    #expect(bare.shares[1].pace == .quick)
    // Now the first stands still, and the second goes on.
    for _ in 0..<2 {
      bare.charge(2, partial: bare.shares[2].holding.partial + Self.mib / 2, missing: Self.mib)
      _ = bare.look()
    }
    #expect(bare.shares[1].pace == .slow)
    #expect(bare.shares[2].pace == .quick)
    let maySecondGoOn = bare.asks(2)
    #expect(maySecondGoOn)
    let mayFirstGoOn = bare.asks(1)
    #expect(mayFirstGoOn)
  }

  @Test("Nobody who comes on again goes before an exception")
  func exceptionGoesFirst() {
    var bare = Bare(limit: 4 * Self.mib, count: 5)
    bare.charge(0, whole: 3 * Self.mib)
    for index in 3..<5 { bare.charge(index, partial: 60 * Self.kib, missing: 2 * Self.mib) }
    // The first two are slow, and exceptions; the second waits for more.
    for index in [1, 2] {
      bare.charge(index, partial: 60 * Self.kib, missing: 2 * Self.mib)
      let mayGo = bare.asks(index)
      let mayOtherGo = bare.asks(4)
      #expect(mayGo)
      #expect(!mayOtherGo)
      for _ in 0..<2 { _ = bare.look() }
      bare.account.leave(&bare.shares[4])
      #expect(bare.shares[index].pace == .slow)
    }
    let isFull = bare.account.mayGrow(&bare.shares[2], by: 1, mayWait: true, isPoolFull: true)
    #expect(!isFull)
    // A third one stands still, and comes on again.
    _ = bare.account.mayGrow(&bare.shares[3], by: 1, mayWait: true, isPoolFull: true)
    for _ in 0..<3 { _ = bare.look() }
    bare.charge(3, partial: 64 * Self.kib, missing: 2 * Self.mib)
    _ = bare.look()
    let next = MemoryAccount.Pace.allCases.map { bare.account.nextWaiting($0) }
    #expect(next.contains(bare.shares[2].stream))
    let mayGoOn = bare.asks(2)
    #expect(mayGoOn)
  }

  @Test("Of those that are slow, who trickles is in the way first")
  func trickles() {
    var bare = Bare(limit: 4 * Self.mib, count: 3)
    bare.charge(0, partial: 100 * Self.kib, missing: Self.mib)
    bare.charge(1, partial: 200 * Self.kib, missing: Self.mib)
    let mayOtherGo = bare.account.mayGrow(&bare.shares[2], by: 1, mayWait: true, isPoolFull: true)
    #expect(!mayOtherGo)
    var ended: [Int] = []
    for second in 0..<60 where ended.isEmpty {
      bare.charge(0, partial: 100 * Self.kib + second, missing: Self.mib)
      bare.charge(1, partial: (200 + 20 * second) * Self.kib, missing: Self.mib)
      ended = bare.look()
    }
    #expect(ended.first == bare.shares[0].stream)
  }

  @Test("Nobody ends for a window that is shut while messages are taken")
  func steadyBackpressure() {
    var bare = Bare(limit: 4 * Self.mib, count: 2)
    bare.charge(1, partial: 40 * Self.kib, missing: 20 * Self.kib)
    for second in 0..<100 {
      bare.charge(0, whole: 4 * Self.mib - second * Self.kib)
      let isOpen = bare.account.mayOpenWindow(isPoolFull: false)
      #expect(!isOpen)
      let ended = bare.look()
      #expect(ended.isEmpty)
    }
    for _ in 0..<29 {
      let ended = bare.look()
      #expect(ended.isEmpty)
    }
    let ended = bare.look()
    #expect(ended == [bare.shares[1].stream], "nothing is taken any more")
  }

  @Test("Halves that keep the window shut beside what is untaken end after half a minute")
  func shutWindow() {
    var model = Model(limit: Self.mib)
    for _ in 0..<3 {
      model.open(message: 60 * Self.kib)
      let id = model.nextStream - 2
      while model.receive(id) > 0 {}
      model.goOn(id, message: 0)
    }
    for _ in 0..<2950 {
      model.open(message: 255)
      model.receive(model.nextStream - 2, atMost: 254)
    }
    #expect(model.account.isWindowShut)
    #expect(model.ended.isEmpty)
    for _ in 0..<40 { model.look() }
    #expect(!model.ended.isEmpty)
    #expect(!model.account.isWindowShut)
  }

  @Test("A pause costs nobody's call while others go on", arguments: [12])
  func longPause(others: Int) {
    var model = Model(limit: 32 * Self.mib)
    model.open(message: 4 * Self.mib)
    while let came = model.streams[1]?.partial, came < Self.mib { model.receive(1) }
    for _ in 0..<120 {
      while model.streams.count <= others { model.open(message: 4 * Self.mib) }
      for id in model.streams.keys.sorted() where id > 1 {
        // Three hundred kilobytes a second.
        var left = 300 * Self.kib
        while left > 0 {
          let length = model.receive(id, atMost: min(left, 16 * Self.kib))
          if length == 0 { break }
          left -= length
        }
        if model.streams[id]?.isComplete == true {
          model.consume(id)
          model.close(id)
        }
      }
      model.look()
    }
    #expect(model.ended.isEmpty)
    model.finish()
    #expect(model.streams.isEmpty)
  }

  @Test("What is whole and untaken keeps a large message from coming for half a minute")
  func untaken() {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<9 {
      model.open(message: 4 * Self.mib)
      let id = model.nextStream - 2
      while model.receive(id) > 0 {}
      if model.streams[id]?.isComplete == true { model.goOn(id, message: 0) }
    }
    let good = model.nextStream
    model.open(message: 4 * Self.mib)
    model.finish(from: good)
    #expect(model.streams[good] != nil)
    #expect(model.ended.isEmpty, "servicers may take them")
    for _ in 0..<36 {
      model.look()
      model.finish(from: good)
    }
    #expect(model.streams[good] == nil)
    #expect(!model.ended.contains(good))
    #expect((1...3).contains(model.ended.count), "no more than make room")
  }

  @Test("One that sends message after message waits for its turn with each")
  func turns() {
    var model = Model(limit: 4 * Self.mib)
    model.open(message: 4 * Self.mib)
    for _ in 0..<20 { model.open(message: Self.mib) }
    var messages = 0
    while model.streams.count > 1, messages < 100 {
      for id in model.streams.keys.sorted() {
        model.receive(id)
        guard model.streams[id]?.isComplete == true else { continue }
        if id == 1 {
          messages += 1
          model.goOn(id, message: 4 * Self.mib)
        }
        model.consume(id)
        if id > 1 { model.close(id) }
      }
    }
    #expect(messages < 5, "it waits for its turn")
    #expect(model.ended.isEmpty)
  }

  @Test("Whole messages that wait for their servicers hold no other message up")
  func waitingMessages() {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<6 {
      model.open(message: 4 * Self.mib)
      let id = model.nextStream - 2
      while model.receive(id) > 0 {}
      model.goOn(id, message: 4 * Self.mib)
    }
    model.open(message: Self.mib)
    let id = model.nextStream - 2
    while model.receive(id) > 0 {}
    #expect(model.streams[id]?.isComplete == true)
    #expect(model.ended.isEmpty)
  }

  @Test("A connection that pauses for a while loses nothing", arguments: [(100, 8), (40, 30)])
  func pause(count: Int, seconds: Int) {
    var model = Model(limit: 32 * Self.mib)
    for _ in 0..<count { model.open(message: 4 * Self.mib) }
    for _ in 0..<8 { for id in model.streams.keys.sorted() { model.receive(id) } }
    for _ in 0..<seconds { model.look() }
    model.finish()
    #expect(model.streams.isEmpty)
    #expect(model.ended.isEmpty)
  }

  @Test("While all connections hold too much nothing opens, and afterwards all goes on")
  func fullPool() {
    var model = Model(limit: 32 * Self.mib)
    model.poolFull = true
    model.open(message: 4 * Self.mib)
    while model.receive(1) > 0 {}
    #expect(model.real == Model.streamWindow)
    #expect(model.account.isTight)
    model.poolFull = false
    model.review()
    while model.receive(1) > 0 {}
    #expect(model.streams[1]?.isComplete == true)
  }

  @Test("Half is given back from the newest on, and a single holder keeps its oldest")
  func newestHalf() {
    var account = MemoryAccount(limit: .max, window: Self.mib, streamWindow: 100)
    var shares = (0..<10).map { MemoryAccount.Share(stream: $0) }
    for index in shares.indices {
      var holding = MemoryAccount.Holding()
      holding.partial = 50
      holding.mayCome = 100 + 50 * index
      holding.besides = 50
      holding.isComplete = index % 2 == 0
      _ = account.charge(&shares[index], holding)
    }
    #expect(account.newestHalf(shares, isOnlyHolder: false) == [9, 8, 7, 6, 5])
    let one = [shares[0]]
    var other = MemoryAccount(limit: .max, window: Self.mib, streamWindow: 100)
    var share = MemoryAccount.Share(stream: 0)
    var holding = MemoryAccount.Holding()
    holding.whole = 50
    _ = other.charge(&share, holding)
    #expect(other.newestHalf([share], isOnlyHolder: true).isEmpty)
    #expect(other.newestHalf(one, isOnlyHolder: false) == [0])
  }

  @Test("A stream that ends while it waits is forgotten, wherever it stands")
  func waiting() {
    var account = MemoryAccount(limit: Self.mib, window: Self.mib, streamWindow: 65_535)
    var shares = (0..<4).map { MemoryAccount.Share(stream: $0) }
    for index in shares.indices {
      #expect(!account.mayGrow(&shares[index], by: 1, mayWait: true, isPoolFull: true))
    }
    for (index, next) in [(2, 0), (0, 1), (3, 1)] {
      account.leave(&shares[index])
      let asked = account.nextWaiting(.quick)
      #expect(asked == next)
    }
    account.leave(&shares[1])
    #expect(!account.isTight)
  }

  @Test("A little that stays costs more than much that passes")
  func costs() {
    let pool = MemoryPool(limit: .max, gauge: StatisticsBoard().slot(0)[.heldBytes])
    let start = NIODeadline.uptimeNanoseconds(100_000_000_000)
    func holding(_ bytes: Int, since: TimeAmount) -> MemoryPool.Holding {
      let holding = MemoryPool.Holding()
      _ = pool.add(bytes, to: holding, MemoryPool.Flow(come: bytes), now: start + since)
      return holding
    }
    let passing = holding(32 * Self.mib, since: .milliseconds(-100))
    let stalled = holding(Self.mib / 2, since: .seconds(-10))
    let old = holding(Self.mib, since: .seconds(-20))
    let costs = [old, stalled, passing].map { $0.cost(now: start) }
    #expect(costs == costs.sorted(by: >))
  }

  @Test("A full pool is looked after until it is full no more", arguments: [true, false])
  func relief(hasGiven: Bool) {
    let pool = MemoryPool(limit: 800, gauge: StatisticsBoard().slot(0)[.heldBytes])
    let holding = MemoryPool.Holding()
    let flow = MemoryPool.Flow()
    _ = pool.add(700, to: holding, flow, now: .now())
    #expect(pool.afterRound(hasGiven: hasGiven) == .nothing)
    _ = pool.add(50, to: holding, flow, now: .now())
    #expect(pool.afterRound(hasGiven: hasGiven) == (hasGiven ? .anotherRound : .nothing))
    _ = pool.add(51, to: holding, flow, now: .now())
    #expect(pool.afterRound(hasGiven: hasGiven) == (hasGiven ? .anotherRound : .anotherRelief))
  }

  @Test("Headers count at once, and up to the limit")
  func headers() {
    var account = MemoryAccount(limit: Self.mib, window: Self.mib, streamWindow: 65_535)
    #expect(account.window == Self.mib / 4)
    var share = MemoryAccount.Share(stream: 1)
    var holding = MemoryAccount.Holding()
    holding.headers = Self.mib - 100
    _ = account.charge(&share, holding)
    #expect(account.mayBegin(100))
    #expect(!account.mayBegin(101))
  }

  @Test(
    "Whatever happens in whatever order, the limit holds and somebody can finish",
    arguments: 0..<60
  )
  func randomOrders(seed: Int) {
    var random = SplitMix(seed: UInt64(seed))
    let limit = [Self.mib, 4 * Self.mib, 32 * Self.mib][seed % 3]
    let largest = [200 * Self.kib, 4 * Self.mib, 40 * Self.mib][(seed / 3) % 3]
    var model = Model(limit: limit)
    for _ in 0..<600 {
      let ids = model.streams.keys.sorted()
      let id = ids.isEmpty ? 0 : ids[Int(random.next() % UInt64(ids.count))]
      switch random.next() % 13 {
      case 0...2: model.open(message: 1 + Int(random.next() % UInt64(largest)))
      case 3...8: model.receive(id, atMost: 1 << (random.next() % 22))
      case 9: model.consume(id)
      case 10: model.close(id)
      case 11: model.look()
      default:
        model.poolFull.toggle()
        model.review()
      }
      #expect(model.real <= limit + 2 * largest, "at most two messages beyond the limit")
      let counted = model.streams.values.reduce(0) { $0 + $1.share.holding.came }
      #expect(model.account.came == counted)
      #expect(model.told == model.real, "what others are told is what is in memory")
    }
    model.poolFull = false
    model.review()
    // The peer sends all that it may, and servicers take all that is whole: all of it comes to an end.
    model.finish(atMost: 1 << 20)
    #expect(model.streams.isEmpty, "everything was whole or was ended")
    #expect(model.account.came == 0)
    #expect(!model.account.isTight)
  }
}

/// A generator of numbers that are the same in every run.
private struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  init(seed: UInt64) { self.state = seed }

  mutating func next() -> UInt64 {
    self.state &+= 0x9e37_79b9_7f4a_7c15
    var value = self.state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }
}
