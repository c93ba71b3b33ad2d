import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import Glibc
import NIOCore
import Testing

struct DrainTests {
  /// Answers with its request when `go` says so.
  private func gated(_ go: Monitor<Bool>) -> ThreadedHandler {
    ThreadedHandler(startsOnFirstMessage: true) { call in
      guard let message = try call.next() else { return }
      try go.wait("the answer's time") { $0 }
      try message.withUnsafeReadableBytes {
        try call.call.respond($0, mayCompress: false, status: .ok, metadata: nil)
      }
    }
  }

  @Test("A drain announces itself twice, lets calls in flight end, and refuses connections")
  func drain() throws {
    let go = Monitor(false)
    let handler = self.gated(go)
    try RunningServer.run(["/t/slow": handler]) { running in
      let client = try running.connect()
      let idle = try running.connect()
      let stream = client.open("/t/slow")
      try client.message([4, 2], on: stream, isEnd: true)
      _ = try handler.handled.call()
      let hasStopped = Monitor(false)
      running.server.drain { hasStopped.update { $0 = true } }
      #expect(throws: (any Error).self) { try running.connect() }
      try idle.waitForClose()
      #expect(idle.goAways.map(\.last) == [Int(Int32.max), 0])
      try client.wait("the second GOAWAY") { client.goAways.count == 2 }
      #expect(client.goAways.map(\.last) == [Int(Int32.max), stream])
      #expect(client.goAways.allSatisfy { $0.code == ErrorCode.noError })
      let late = client.open("/t/slow")
      try client.message([1], on: late, isEnd: true)
      #expect(!hasStopped.current)
      go.update { $0 = true }
      let answer = try client.answer(on: stream)
      #expect(answer.payloads == [[4, 2]] && answer.code == .ok)
      try client.waitForClose()
      try hasStopped.wait("the server's end") { $0 }
      #expect(handler.handled.entries.current.calls.count == 1)
      #expect(client.answers[late]?.headers == nil)
    }
  }

  @Test("Calls that cross the last GOAWAY stop nothing that is behind them")
  func crossingCalls() throws {
    let handler = TestHandler.sum()
    try RunningServer.run(["/t/sum": handler]) { running in
      let client = try running.connect()
      let stream = client.open("/t/sum")
      try client.message([1], on: stream)
      try client.barrier()
      running.server.drain {}
      try client.wait("the second GOAWAY") { client.goAways.count == 2 }
      for _ in 0..<50 {
        let late = client.open("/t/sum")
        client.writer.data(FrameWriter.message([9]), on: late)
        client.writer.reset(late)
      }
      try client.message([2], on: stream, isEnd: true)
      #expect(try client.answer(on: stream).code == .ok)
      try client.waitForClose()
    }
  }

  @Test("A peer that goes wrong during the drain is cut off, whatever it holds")
  func errorWhileDraining() throws {
    try RunningServer.run(["/t/silent": TestHandler.silent()]) { running in
      let client = try running.connect()
      client.open("/t/silent")
      try client.barrier()
      running.server.drain {}
      try client.wait("the second GOAWAY") { client.goAways.count == 2 }
      // A frame that is larger than may be, and what comes with it.
      let begun = ContinuousClock.now
      client.send { $0.raw([0xFF, 0, 0, 0x77, 0, 0, 0, 0, 0]) }
      while !client.isClosed, ContinuousClock.now - begun < .seconds(30) {
        client.send { $0.raw([UInt8](repeating: 0, count: 10_000)) }
        usleep(2000)
        if running.server.connectionCount == 0 { break }
      }
      #expect(running.server.connectionCount == 0)
    }
  }

  @Test("A large answer that a slow peer reads during the drain arrives whole")
  func drainOfLargeAnswer() throws {
    let go = Monitor(false)
    let handler = self.gated(go)
    var configuration = ServerConfiguration()
    configuration.transport.maxReceiveMessageLength = 32 << 20
    try RunningServer.run(["/t/slow": handler], configuration: configuration) { running in
      // Wide windows, so that the whole answer waits in the server's socket and not in a window.
      let client = try running.connect(
        settings: [(4, UInt32(Int32.max))],
        receiveBuffer: 16 * 1024
      )
      client.writer.windowUpdate(0, increment: Int(Int32.max) - 65_535)
      client.grantsWindows = false
      let message = [UInt8](repeating: 5, count: 20 << 20)
      let stream = client.open("/t/slow")
      try client.message(message, on: stream, isEnd: true)
      _ = try handler.handled.call()
      let hasStopped = Monitor(false)
      running.server.drain { hasStopped.update { $0 = true } }
      try client.wait("the second GOAWAY") { client.goAways.count == 2 }
      go.update { $0 = true }
      // The call has ended for the server once its answer is handed to the socket.
      try running.waitForRelease()
      client.readInterval = 2000
      let answer = try client.answer(on: stream)
      #expect(answer.receivedBytes == message.count + 5)
      #expect(answer.code == .ok)
      try client.waitForClose()
      try hasStopped.wait("the server's end") { $0 }
    }
  }

  @Test("Cancelling answers every call UNAVAILABLE and closes every connection")
  func cancelAllCalls() throws {
    let silent = TestHandler.silent()
    let held = TestHandler.silent(startsOnFirstMessage: true)
    try RunningServer.run(["/t/silent": silent, "/t/held": held]) { running in
      let clients = try (0..<3).map { _ in try running.connect() }
      for client in clients {
        for _ in 0..<3 { client.open("/t/silent") }
        client.open("/t/held")
        try client.barrier()
      }
      running.server.cancelAllCalls()
      for client in clients {
        try client.waitForClose()
        #expect(client.answers.count == 4)
        for answer in client.answers.values {
          #expect(answer.code == .unavailable && answer.details == "Cancelling all calls")
        }
      }
      #expect(
        try silent.handled.terminations(9)
          == [Call.Termination](repeating: .cancelledByServer, count: 9)
      )
      #expect(held.handled.entries.current.calls.isEmpty)
      try running.waitForRelease()
    }
  }

  @Test("Cancelling reaches calls whose peers do not read, and threads that wait for them")
  func cancelStuckCalls() throws {
    let handler = ThreadedHandler(startsOnFirstMessage: true) { call in
      let message = [UInt8](repeating: 0, count: 10_000)
      while try call.send(message) {}
    }
    try RunningServer.run(["/t/write": handler]) { running in
      let client = try running.connect(settings: [(4, UInt32(Int32.max))], receiveBuffer: 16 * 1024)
      client.grantsWindows = false
      client.writer.windowUpdate(0, increment: Int(Int32.max) - 65_535)
      let stream = client.open("/t/write")
      try client.message([], on: stream, isEnd: true)
      _ = try handler.handled.call()
      running.server.cancelAllCalls()
      #expect(try handler.handled.terminations(1) == [.cancelledByServer])
      try running.waitForRelease()
      try poll("the connection's end") { running.server.connectionCount == 0 }
    }
  }

  @Test(
    "Calls that are cancelled get their status, and a peer that does not hang up is not waited for"
  )
  func cancelCutsConnections() throws {
    try RunningServer.run(["/t/silent": TestHandler.silent()]) { running in
      let client = try running.connect()
      let streams = (0..<100).map { _ in client.open("/t/silent") }
      try client.barrier()
      running.server.cancelAllCalls()
      // The peer reads nothing yet and keeps its side open.
      try poll("the connection's end") { running.server.connectionCount == 0 }
      try client.waitForClose()
      #expect(streams.allSatisfy { client.answers[$0]?.code == .unavailable })
    }
  }

  @Test("A drain of a server without connections ends at once, also when asked twice")
  func drainIdle() throws {
    let server = Server(configuration: ServerConfiguration())
    _ = try server.addPort("127.0.0.1:0", credentials: nil)
    try server.start()
    let ends = Monitor(0)
    server.drain { ends.update { $0 += 1 } }
    server.drain { ends.update { $0 += 1 } }
    try ends.wait("both ends") { $0 == 2 }
  }

  @Test("A server that was never started gives its port back")
  func drainUnstarted() throws {
    let server = Server(configuration: ServerConfiguration())
    let port = try server.addPort("127.0.0.1:0", credentials: nil)
    let ends = Monitor(0)
    server.drain { ends.update { $0 += 1 } }
    #expect(ends.current == 1)
    let sockets = try BoundSocket.bind(
      .host("127.0.0.1", port: port),
      reusePort: false,
      backlog: 1
    )
    for socket in sockets { socket.close() }
    #expect(throws: Server.WrongState.self) { try server.start() }
    #expect(throws: Server.WrongState.self) {
      try server.addPort("127.0.0.1:0", credentials: nil)
    }
  }

  @Test("A server starts once, and takes more ports while it runs")
  func start() throws {
    try RunningServer.run(["/t/echo": TestHandler.echo()]) { running in
      #expect(throws: Server.WrongState.self) { try running.server.start() }
      let port = try running.server.addPort("127.0.0.1:0", credentials: nil)
      let connection = try SocketConnection(
        to: SocketAddress(ipAddress: "127.0.0.1", port: port)
      )
      let client = TestClient(connection)
      try client.handshake()
      #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
    }
  }
}
