import GRPCEngineServer
import NIOCore
import Testing

/// When a server is taken for idle.
struct IdlenessTests {
  private func activity(_ ended: UInt64, _ open: UInt64, _ bytes: UInt64) -> Idleness.Activity {
    Idleness.Activity(endedCalls: ended, openCalls: open, bytes: bytes)
  }

  @Test("A server is idle once a period has passed without calls, and is looked at no more")
  func calls() {
    var idleness = Idleness(self.activity(0, 1, 0))
    #expect(idleness.look(self.activity(9, 1, 500)) == (false, true))
    #expect(idleness.look(self.activity(10, 0, 500)) == (false, true))
    #expect(idleness.look(self.activity(10, 0, 900)) == (true, false))
  }

  @Test("One with streams that say nothing is idle, and again after they have said much")
  func streams() {
    var idleness = Idleness(self.activity(0, 1, 0))
    #expect(idleness.look(self.activity(0, 1, 100)) == (true, true))
    #expect(idleness.look(self.activity(0, 1, 200)) == (false, true))
    #expect(idleness.look(self.activity(0, 1, 1 << 20)) == (false, true))
    #expect(idleness.look(self.activity(0, 1, 1 << 20)) == (true, true))
    #expect(idleness.look(self.activity(1, 0, 1 << 20)) == (false, true))
    #expect(idleness.look(self.activity(1, 0, 1 << 20)) == (true, false))
  }
}
