import GRPCEngineServer
import NIOCore
import Testing

@Suite("Inbox of a loop of another language")
struct LoopInboxTests {
  private typealias Inbox = LoopInbox<Int>

  private static func time(_ seconds: Int64) -> NIODeadline {
    .uptimeNanoseconds(0) + .seconds(seconds)
  }

  @Test("The first call asks for a loop, which is woken once for all that waits")
  func firstCallAsks() {
    var inbox = Inbox()
    #expect(inbox.post(1, about: .newCall, now: Self.time(1)) == .ask)
    #expect(inbox.post(2, about: .newCall, now: Self.time(2)) == .waits)
    #expect(inbox.oldest == Self.time(1))
    #expect(inbox.attach() == true)
    #expect(inbox.post(3, about: .knownCall, now: Self.time(3)) == .waits)
    #expect(inbox.take() == [1, 2, 3])
    #expect(inbox.oldest == nil)
    #expect(inbox.post(4, about: .newCall, now: Self.time(4)) == .wake)
    #expect(inbox.oldest == Self.time(4))
  }

  @Test("A loop that fails gives back what waits, and the next call asks again")
  func failedLoop() {
    var inbox = Inbox()
    #expect(inbox.post(1, about: .newCall, now: Self.time(1)) == .ask)
    #expect(inbox.failed() == [1])
    #expect(inbox.post(2, about: .newCall, now: Self.time(2)) == .ask)
    #expect(inbox.attach() == true)
    #expect(inbox.lost() == [2])
    #expect(inbox.lost() == [])
    #expect(inbox.post(3, about: .newCall, now: Self.time(3)) == .ask)
  }

  @Test(
    "Calls that end while they wait are let go, before they are more than others",
    arguments: [true, false]
  )
  func abandoned(isAttached: Bool) {
    var inbox = Inbox()
    if isAttached { _ = inbox.attach() }
    for item in 0..<50 { _ = inbox.post(-item - 1, about: .newCall, now: Self.time(1)) }
    var found = 0
    for item in 0..<1000 {
      _ = inbox.post(item, about: .newCall, now: Self.time(2))
      let gone = inbox.abandoned { $0 >= 0 }
      #expect(!gone.contains { $0 < 0 })
      found += gone.count
      #expect(item + 1 - found <= 80)
    }
    #expect(inbox.oldest == Self.time(1))
    let left = isAttached ? inbox.take() : inbox.failed()
    #expect(left.count == 1050 - found)
    #expect(left.prefix(50) == (1...50).map { -$0 }[...])
  }

  @Test("News of a call whose loop has gone ask for no loop")
  func newsOfLostCalls() {
    var inbox = Inbox()
    #expect(inbox.post(1, about: .knownCall, now: Self.time(1)) == .refused)
    #expect(inbox.post(2, about: .newCall, now: Self.time(1)) == .ask)
    #expect(inbox.post(3, about: .knownCall, now: Self.time(1)) == .refused)
    #expect(inbox.attach() == true)
    #expect(inbox.take() == [2])
  }

  @Test("There is one loop at a time, and none after the end")
  func unwantedLoops() {
    var inbox = Inbox()
    #expect(inbox.attach() == false)
    #expect(inbox.attach() == nil)
    #expect(inbox.post(1, about: .newCall, now: Self.time(1)) == .wake)
    #expect(inbox.close() == [1])
    #expect(inbox.attach() == nil)
    #expect(inbox.post(2, about: .newCall, now: Self.time(1)) == .refused)
    #expect(inbox.failed() == [])
    #expect(inbox.lost() == [])
    #expect(inbox.isClosed)
  }

  @Test(
    "Whatever the order of events, no call is lost and none waits for nobody",
    arguments: UInt64(0)..<50
  )
  func randomOrders(seed: UInt64) {
    var random = SplitMix(state: seed)
    var inbox = Inbox()
    /// Items that nobody has had back yet.
    var waiting: Set<Int> = []
    /// Whether somebody is to bring a loop; whether there is one, and whether it has been woken.
    var (isAsked, isAttached, isAwake, isClosed) = (false, false, false, false)
    for item in 0..<20_000 {
      switch random.next() % 16 {
      case 0..<8:
        let subject: Inbox.Subject = random.next() % 2 == 0 ? .newCall : .knownCall
        switch inbox.post(item, about: subject, now: Self.time(Int64(item))) {
        case .waits:
          #expect(isAsked || (isAttached && isAwake))
          waiting.insert(item)
        case .ask:
          #expect(!isAsked && !isAttached && !isClosed && subject == .newCall)
          isAsked = true
          waiting.insert(item)
        case .wake:
          #expect(isAttached && !isAwake)
          isAwake = true
          waiting.insert(item)
        case .refused:
          #expect(isClosed || (!isAttached && subject == .knownCall))
        }
      case 8..<12:
        let taken = inbox.take()
        #expect(isAttached ? Set(taken) == waiting : taken.isEmpty)
        #expect(taken == taken.sorted())
        waiting.subtract(taken)
        isAwake = false
      case 12..<14:
        let mustWake = inbox.attach()
        #expect((mustWake == nil) == (isAttached || isClosed))
        if let mustWake {
          #expect(mustWake == !waiting.isEmpty)
          (isAsked, isAttached, isAwake) = (false, true, mustWake)
        }
      case 14:
        let left = inbox.failed()
        #expect(isAsked ? Set(left) == waiting : left.isEmpty)
        waiting.subtract(left)
        isAsked = false
      default:
        let isLast = random.next() % 1000 == 0
        let left = isLast ? inbox.close() : inbox.lost()
        #expect(isAttached || isLast ? Set(left) == waiting : left.isEmpty)
        waiting.subtract(left)
        if isLast || isAttached { isAwake = false }
        if isLast { (isAsked, isClosed) = (false, true) }
        isAttached = false
      }
      #expect((inbox.oldest == nil) == waiting.isEmpty)
      #expect(waiting.isEmpty || isAsked || (isAttached && isAwake))
    }
  }
}

/// A generator of random numbers that gives the same ones for the same seed.
private struct SplitMix {
  var state: UInt64

  mutating func next() -> UInt64 {
    self.state &+= 0x9E37_79B9_7F4A_7C15
    var value = self.state
    value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
    return value ^ (value >> 31)
  }
}
