import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import Glibc
import Testing

struct UnixSocketTests {
  @Test("A server on a Unix domain socket serves, names its peers, and takes its file along")
  func serve() throws {
    try withTemporaryPath { path in
      let handler = TestHandler.echo()
      try RunningServer.run(["/t/echo": handler], address: "unix:\(path)") { running in
        let client = try running.connect()
        #expect(try client.unary("/t/echo", [1, 2]).payloads == [[1, 2]])
        #expect(try handler.handled.call().peer.description == "unix:")
        #expect(try handler.handled.call().peer.isSecure == false)
      }
      #expect(access(path, F_OK) != 0)
    }
  }

  @Test("A peer on TCP is named by its address")
  func tcpPeer() throws {
    let handler = TestHandler.echo()
    try RunningServer.run(["/t/echo": handler]) { running in
      _ = try running.connect().unary("/t/echo")
      let description = try handler.handled.call().peer.description
      #expect(description.hasPrefix("ipv4:127.0.0.1:"))
      #expect(Int(description.dropFirst("ipv4:127.0.0.1:".count)) != nil)
    }
  }
}
