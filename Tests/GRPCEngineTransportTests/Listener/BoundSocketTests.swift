import GRPCEngineTesting
import GRPCEngineTransport
import Glibc
import NIOCore
import Testing

struct BoundSocketTests {
  private func bind(_ address: ListenAddress, reusePort: Bool = false) throws -> BoundSocket {
    try #require(
      BoundSocket.bind(address, reusePort: reusePort, backlog: 8).first
    )
  }

  private func failure(_ address: ListenAddress) -> BoundSocket.Failure? {
    do {
      try self.bind(address).close()
      return nil
    } catch {
      return error as? BoundSocket.Failure
    }
  }

  private func canConnect(to address: SocketAddress) -> Bool {
    let connection = try? SocketConnection(to: address)
    connection?.close()
    return connection != nil
  }

  @Test("Port 0 gives a port that can be connected to", arguments: ["127.0.0.1", "localhost", "*"])
  func portZero(host: String) throws {
    let socket = try self.bind(.host(host, port: 0))
    defer { socket.close() }
    #expect((1...65_535).contains(socket.port))
    #expect(socket.isTCP && socket.path == nil)
    #expect(self.canConnect(to: try SocketAddress(ipAddress: "127.0.0.1", port: socket.port)))
  }

  @Test("A taken port is EADDRINUSE")
  func takenPort() throws {
    let socket = try self.bind(.host("127.0.0.1", port: 0))
    defer { socket.close() }
    #expect(self.failure(.host("127.0.0.1", port: socket.port))?.errno == EADDRINUSE)
    #expect(throws: BoundSocket.Failure.self, "not even with reuse: the first has not allowed it") {
      try self.bind(.host("127.0.0.1", port: socket.port), reusePort: true)
    }
  }

  @Test("A port may be shared when both want that")
  func sharedPort() throws {
    let first = try self.bind(.host("127.0.0.1", port: 0), reusePort: true)
    defer { first.close() }
    let second = try self.bind(.host("127.0.0.1", port: first.port), reusePort: true)
    defer { second.close() }
    #expect(second.port == first.port)
  }

  @Test("An address of another machine and a host that does not exist are refused")
  func foreignHost() {
    // TEST-NET-1 of RFC 5737, and a name under RFC 6761's .invalid.
    #expect(self.failure(.host("192.0.2.1", port: 0))?.errno == EADDRNOTAVAIL)
    let unknown = self.failure(.host("no-such-host.invalid", port: 0))
    #expect(unknown?.message.contains("no-such-host.invalid") == true)
  }

  @Test("A Unix domain socket has port 1, and its file goes with it")
  func unix() throws {
    try withTemporaryPath { path in
      let socket = try self.bind(.unix(path: path))
      #expect(socket.port == 1 && !socket.isTCP && socket.path == path)
      #expect(self.canConnect(to: try SocketAddress(unixDomainSocketPath: path)))
      socket.close()
      #expect(access(path, F_OK) != 0)
    }
  }

  @Test("A socket's file that nobody listens on is replaced")
  func staleUnix() throws {
    try withTemporaryPath { path in
      let socket = try self.bind(.unix(path: path))
      // As a crashed process leaves it: closed, but its file still there.
      Glibc.close(socket.descriptor)
      #expect(access(path, F_OK) == 0)
      let second = try self.bind(.unix(path: path))
      #expect(self.canConnect(to: try SocketAddress(unixDomainSocketPath: path)))
      second.close()
    }
  }

  @Test("A socket's file that somebody listens on stays")
  func liveUnix() throws {
    try withTemporaryPath { path in
      let socket = try self.bind(.unix(path: path))
      defer { socket.close() }
      #expect(self.failure(.unix(path: path))?.errno == EADDRINUSE)
      #expect(self.canConnect(to: try SocketAddress(unixDomainSocketPath: path)))
    }
  }

  @Test(
    "A socket whose backlog is full is in use, and nobody waits for it",
    .timeLimit(.minutes(1))
  )
  func fullBacklog() throws {
    try withTemporaryPath { path in
      let sockets = try BoundSocket.bind(.unix(path: path), reusePort: false, backlog: 0)
      defer { for socket in sockets { socket.close() } }
      let waiting = try SocketConnection(to: try SocketAddress(unixDomainSocketPath: path))
      defer { waiting.close() }
      #expect(self.failure(.unix(path: path))?.errno == EADDRINUSE)
      #expect(access(path, F_OK) == 0)
    }
  }

  @Test("A successor's file stays when its predecessor closes")
  func successor() throws {
    try withTemporaryPath { path in
      let socket = try self.bind(.unix(path: path))
      // As a successor replaces it that does not ask who listens.
      unlink(path)
      let successor = try self.bind(.unix(path: path))
      socket.close()
      #expect(self.canConnect(to: try SocketAddress(unixDomainSocketPath: path)))
      successor.close()
      #expect(access(path, F_OK) != 0)
    }
  }

  @Test("A host with several addresses listens on all of them, on one port")
  func severalAddresses() throws {
    try #require(self.failure(.host("::1", port: 0)) == nil, "this machine has no IPv6")
    for _ in 0..<20 {
      let sockets = try BoundSocket.bind(.host("localhost", port: 0), reusePort: true, backlog: 8)
      defer { for socket in sockets { socket.close() } }
      let port = try #require(sockets.first).port
      #expect(sockets.allSatisfy { $0.port == port })
      for host in ["127.0.0.1", "::1"] {
        #expect(self.canConnect(to: try SocketAddress(ipAddress: host, port: port)))
      }
    }
  }

  @Test("Of several addresses, one that is taken refuses all")
  func oneOfSeveralTaken() throws {
    try #require(self.failure(.host("::1", port: 0)) == nil, "this machine has no IPv6")
    for taken in ["127.0.0.1", "::1"] {
      let socket = try self.bind(.host(taken, port: 0))
      defer { socket.close() }
      #expect(self.failure(.host("localhost", port: socket.port))?.errno == EADDRINUSE)
    }
  }

  @Test("A file that is no socket stays")
  func ordinaryFile() throws {
    try withTemporaryPath { path in
      let file = try #require(fopen(path, "w"))
      fclose(file)
      defer { unlink(path) }
      #expect(self.failure(.unix(path: path))?.errno == EADDRINUSE)
      #expect(access(path, F_OK) == 0)
    }
  }

  @Test("A path that is too long, or in no folder, is refused")
  func badPath() {
    let long = "/tmp/" + String(repeating: "x", count: 200)
    #expect(self.failure(.unix(path: long))?.errno == ENAMETOOLONG)
    #expect(self.failure(.unix(path: "/no-such-folder/a.sock"))?.errno == ENOENT)
  }

  @Test("An abstract name may have 107 bytes, as it needs no NUL at its end")
  func longestAbstractName() throws {
    let tag = "grpc-engine-test-\(getpid())-"
    let longest = tag + String(repeating: "x", count: 107 - tag.utf8.count)
    try self.bind(.abstractUnix(name: longest)).close()
    #expect(self.failure(.abstractUnix(name: longest + "x"))?.errno == ENAMETOOLONG)
  }

  @Test("An abstract name needs no file")
  func abstractUnix() throws {
    let name = "grpc-engine-test-\(getpid())"
    let socket = try self.bind(.abstractUnix(name: name))
    defer { socket.close() }
    #expect(socket.path == nil)
    #expect(self.failure(.abstractUnix(name: name))?.errno == EADDRINUSE)
  }

  @Test("A socket that listens already is taken as it is")
  func adopted() throws {
    let first = try self.bind(.host("127.0.0.1", port: 0))
    let adopted = try self.bind(.descriptor(dup(first.descriptor)))
    defer { adopted.close() }
    #expect(adopted.port == first.port && adopted.isTCP && adopted.path == nil)
    first.close()
    #expect(self.canConnect(to: try SocketAddress(ipAddress: "127.0.0.1", port: adopted.port)))
  }

  @Test("The file of a socket that was taken as it is stays with its owner")
  func adoptedFile() throws {
    try withTemporaryPath { path in
      let owner = try self.bind(.unix(path: path))
      defer { owner.close() }
      let adopted = try self.bind(.descriptor(dup(owner.descriptor)))
      #expect(adopted.port == 1 && !adopted.isTCP)
      adopted.close()
      #expect(access(path, F_OK) == 0)
    }
  }

  @Test("A descriptor that is not open, no socket, or does not listen is refused")
  func adoptedWrongly() throws {
    #expect(self.failure(.descriptor(1_000_000))?.errno == EBADF)
    let file = open("/dev/null", O_RDONLY)
    defer { close(file) }
    #expect(self.failure(.descriptor(file))?.errno == ENOTSOCK)
    let idle = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
    defer { close(idle) }
    #expect(self.failure(.descriptor(idle))?.errno == EINVAL)
  }
}
