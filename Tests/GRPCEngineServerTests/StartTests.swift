import GRPCEngineServer
import GRPCEngineTesting
import NIOCore
import NIOPosix
import Testing

struct StartTests {
  @Test("Every port that is added while the server starts is served")
  func portsAddedMeanwhile() throws {
    let pool = NIOThreadPool(numberOfThreads: 1)
    pool.start()
    defer { try? pool.syncShutdownGracefully() }
    for _ in 0..<30 {
      let server = Server(configuration: ServerConfiguration())
      server.methods.register(TestHandler.echo(), for: "/a/b")
      let started = pool.runIfActive(eventLoop: MultiThreadedEventLoopGroup.singleton.next()) {
        try server.start()
      }
      var ports: [Int] = []
      for _ in 0..<10 { ports.append(try server.addPort("127.0.0.1:0", credentials: nil)) }
      try started.wait()
      for port in ports {
        let address = try SocketAddress(ipAddress: "127.0.0.1", port: port)
        let client = TestClient(try SocketConnection(to: address))
        try client.handshake()
      }
      let hasStopped = Monitor(false)
      server.drain { hasStopped.update { $0 = true } }
      server.cancelAllCalls()
      try hasStopped.wait("the server's end") { $0 }
    }
  }

  @Test("Nothing holds a server that has stopped, nor its health")
  func released() throws {
    weak var server: Server?
    weak var health: HealthBoard?
    func serve() throws {
      let made = Server(configuration: ServerConfiguration())
      (server, health) = (made, made.health)
      _ = try made.addPort("127.0.0.1:0", credentials: nil)
      try made.start()
      let hasStopped = Monitor(false)
      made.drain { hasStopped.update { $0 = true } }
      try hasStopped.wait("the server's end") { $0 }
    }
    try serve()
    // Its threads may be about to leave.
    let giveUpAt = NIODeadline.now() + .seconds(10)
    while server != nil || health != nil, NIODeadline.now() < giveUpAt { usleep(1_000) }
    #expect(server == nil && health == nil)
  }
}
