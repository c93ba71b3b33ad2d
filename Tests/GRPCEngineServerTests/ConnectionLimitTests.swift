import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import Testing

struct ConnectionLimitTests {
  @Test("Connections past the limit wait until another has gone")
  func limit() throws {
    var configuration = ServerConfiguration()
    configuration.transport.maxConnections = 2
    try RunningServer.run(["/t/echo": TestHandler.echo()], configuration: configuration) {
      running in
      let first = try running.connect()
      let second = try running.connect()
      // The kernel connects it.
      let third = TestClient(try SocketConnection(to: running.address))
      #expect(try second.unary("/t/echo", [2]).payloads == [[2]])
      #expect(running.server.connectionCount == 2)
      first.connection.close()
      try third.handshake()
      #expect(try third.unary("/t/echo", [3]).payloads == [[3]])
      #expect(running.server.connectionCount == 2)
    }
  }

  @Test("A server whose connections are all taken drains")
  func drain() throws {
    var configuration = ServerConfiguration()
    configuration.transport.maxConnections = 1
    try RunningServer.run(["/t/echo": TestHandler.echo()], configuration: configuration) {
      running in
      let client = try running.connect()
      let waiting = try SocketConnection(to: running.address)
      let hasStopped = Monitor(false)
      running.server.drain { hasStopped.update { $0 = true } }
      try client.waitForClose()
      try hasStopped.wait("the server's end") { $0 }
      waiting.close()
    }
  }
}
