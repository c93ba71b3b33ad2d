import GRPCEngineServer
import GRPCEngineTesting
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

  @Test("One that has little to do after much is looked after, too, and once")
  func calm() {
    var idleness = Idleness(self.activity())
    var (calls, bytes): (UInt64, UInt64) = (0, 0)
    func look(_ more: UInt64) -> Bool {
      (calls, bytes) = (calls + 1, bytes + more)
      return idleness.look(self.activity(begun: calls, bytes: bytes)).hasBegun
    }
    for (most, isMuch) in [(UInt64(1) << 30, true), (1 << 26, true), (1 << 25, false)] {
      let told = ([most, most / 2] + Array(repeating: most / 20, count: 10)).map { look($0) }
      #expect(told.filter { $0 }.count == (isMuch ? 1 : 0))
      #expect(told[4] == isMuch)
    }
    // What goes up and down is not calm.
    let told = (0..<30).map { look($0 % 3 == 0 ? 1 << 30 : 100) }
    #expect(!told.contains(true))
  }

  @Test(
    "Connections that make no call have the server looked at, too, where they brought much or are many",
    arguments: [24, 300]
  )
  func connectionsWithoutCalls(count: Int) throws {
    let fallen = Monitor(0)
    try RunningServer.run([:], observeIdleness: { fallen.update { $0 += 1 } }) { running in
      for _ in 0..<count {
        guard count < 100 else {
          try running.connect().connection.close()
          continue
        }
        let client = try running.connect()
        let stream = client.open("/no/method")
        for _ in 0..<3 {
          client.send { $0.data(ByteBuffer(repeating: 0, count: 16_000), on: stream) }
        }
        try client.barrier()
        client.connection.close()
      }
      try fallen.wait("the server to fall idle") { $0 == 1 }
      let probe = try running.connect()  // a probe, for example
      probe.connection.close()
    }
    #expect(fallen.current == 1)
  }
}
