import Testing

@testable import GRPCEngineServer

struct OrphanWatchTests {
  private static let patience = OrphanWatch.patience

  @Test("A process whose parent lives is never killed, however silent Python is")
  func parentLives() {
    var watch = OrphanWatch(parent: 7)
    for now in stride(from: UInt64(1), to: 1_000_000, by: 1000) {
      #expect(watch.look(parent: 7, pulse: 1, now: now) == false)
    }
  }

  @Test("An orphan in which Python does not run is killed once its patience is over")
  func orphanHangs() {
    var watch = OrphanWatch(parent: 7)
    #expect(watch.look(parent: 7, pulse: 1000, now: 90_000) == false)
    #expect(watch.look(parent: 1, pulse: 1000, now: 100_000) == false, "time to notice")
    #expect(watch.look(parent: 1, pulse: 1000, now: 100_000 + Self.patience - 1) == false)
    #expect(watch.look(parent: 1, pulse: 1000, now: 100_000 + Self.patience) == true)
  }

  @Test("An orphan in which Python runs drains in peace")
  func orphanDrains() {
    var watch = OrphanWatch(parent: 7)
    var now: UInt64 = 100_000
    for _ in 0..<200 {
      now += 250
      #expect(watch.look(parent: 1, pulse: now - 500, now: now) == false)
    }
    let last = now - 500
    #expect(watch.look(parent: 1, pulse: last, now: last + Self.patience - 1) == false)
    #expect(watch.look(parent: 1, pulse: last, now: last + Self.patience) == true)
  }

  @Test("Where nobody tells that Python runs nothing is concluded from silence")
  func noPulse() {
    var watch = OrphanWatch(parent: 7)
    #expect(watch.look(parent: 1, pulse: 0, now: 1) == false)
    #expect(watch.look(parent: 1, pulse: 0, now: 1 + 10 * Self.patience) == false)
  }
}
