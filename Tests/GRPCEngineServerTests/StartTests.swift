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
}
