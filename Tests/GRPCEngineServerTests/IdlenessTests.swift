import GRPCEngineServer
import NIOCore
import Testing

/// When a server is taken for idle.
struct IdlenessTests {
  private func activity(
    begun: UInt64 = 0,
    open: UInt64 = 0,
    connections: UInt64 = 1,
    bytes: UInt64 = 0
  ) -> Idleness.Activity {
    Idleness.Activity(
      calls: begun,
      openCalls: open,
      connections: connections,
      bytes: bytes
    )
  }

  @Test("A server is idle after a period without calls, and looked at while it has clients")
  func calls() {
    var idleness = Idleness(self.activity(open: 1))
    #expect(idleness.look(self.activity(begun: 9, open: 1, bytes: 500)) == (false, true))
    #expect(idleness.look(self.activity(begun: 10, bytes: 500)) == (false, true))
    #expect(idleness.look(self.activity(begun: 10, bytes: 900)) == (true, true))
    #expect(idleness.look(self.activity(begun: 10, bytes: 950)) == (false, true))
    #expect(idleness.look(self.activity(begun: 10, connections: 0, bytes: 950)) == (false, true))
    #expect(idleness.look(self.activity(begun: 10, connections: 0, bytes: 950)) == (true, false))
  }

  @Test("One with streams that say nothing is idle, and again after they have said much")
  func streams() {
    var idleness = Idleness(self.activity(open: 1))
    #expect(idleness.look(self.activity(open: 1, bytes: 100)) == (true, true))
    #expect(idleness.look(self.activity(open: 1, bytes: 200)) == (false, true))
    #expect(idleness.look(self.activity(open: 1, bytes: 1 << 20)) == (false, true))
    #expect(idleness.look(self.activity(open: 1, bytes: 1 << 20)) == (true, true))
    #expect(idleness.look(self.activity(begun: 1, bytes: 1 << 20)) == (false, true))
  }
}
