import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import NIOHPACK
import NIOPosix
import Testing

struct HealthServiceTests {
  private static let check = "/grpc.health.v1.Health/Check"
  private static let list = "/grpc.health.v1.Health/List"
  private static let watch = "/grpc.health.v1.Health/Watch"

  private func run(
    _ methods: [String: any MethodHandler] = [:],
    configuration: ServerConfiguration = ServerConfiguration(),
    _ body: (RunningServer, TestClient) throws -> Void
  ) throws {
    try RunningServer.run(methods, configuration: configuration) { running in
      running.server.enableHealth()
      try body(running, running.connect())
    }
  }

  /// A `HealthCheckRequest`, of a name of less than 128 bytes.
  private func request(_ service: String) -> [UInt8] {
    [0x0a, UInt8(service.utf8.count)] + service.utf8
  }

  @Test("Check tells the status of a service, and NOT_FOUND of one that is not known")
  func check() throws {
    try self.run { running, client in
      running.server.health.add(["a.B"])
      #expect(try client.unary(Self.check).payloads == [[8, 1]])
      #expect(try client.unary(Self.check, self.request("a.B")).payloads == [[8, 1]])
      running.server.health.set(.notServing, for: "a.B")
      #expect(try client.unary(Self.check, self.request("a.B")).payloads == [[8, 2]])
      let answer = try client.unary(Self.check, self.request("c.D"))
      #expect(answer.code == .notFound && answer.payloads.isEmpty)
    }
  }

  @Test("A request that is no message is INTERNAL", arguments: ["Check", "List", "Watch"])
  func malformed(method: String) throws {
    try self.run { running, client in
      let answer = try client.unary("/grpc.health.v1.Health/\(method)", [0x0a, 5])
      #expect(answer.code == .internalError)
      #expect(answer.details == "Exception deserializing request!")
      #expect(running.server.health.watcherCount == 0)
    }
  }

  @Test("List gives a hundred services, and RESOURCE_EXHAUSTED for more")
  func list() throws {
    try self.run { running, client in
      running.server.health.add((1...99).map { "a.B\($0)" })
      let answer = try client.unary(Self.list)
      #expect(answer.code == .ok)
      #expect(answer.payloads == [HealthMessages.listResponse(running.server.health.statuses)])
      running.server.health.add(["a.C"])
      #expect(try client.unary(Self.list).code == .resourceExhausted)
    }
  }

  @Test("Watch tells the status at once, and then each change once")
  func watch() throws {
    try self.run { running, client in
      let health = running.server.health
      let stream = client.open(Self.watch)
      try client.message(self.request("a.B"), on: stream, isEnd: true)
      var expected: [[UInt8]] = [[8, 3]]
      func expect(_ status: UInt8?) throws {
        if let status { expected.append([8, status]) }
        try client.wait("a status") { client.answers[stream]?.payloads.count == expected.count }
        #expect(client.answers[stream]?.payloads == expected)
      }
      try expect(nil)
      health.set(.serving, for: "a.B")
      try expect(1)
      health.set(.serving, for: "a.B")
      health.set(.notServing, for: "another")
      health.set(.notServing, for: "a.B")
      try expect(2)
      // It is NOT_SERVING already.
      health.setNotReady("a reason")
      health.set(.serving, for: "a.B")
      health.setReady(for: nil)
      try expect(1)
      health.announceShutdown()
      try expect(2)
      #expect(client.answers[stream]?.isEnded == false)
      #expect(health.watcherCount == 1)
      client.writer.reset(stream)
      try client.barrier()
      try poll("the watcher's end") { health.watcherCount == 0 }
    }
  }

  @Test("A lease that runs out is told to who watches, with no probe")
  func watchLease() throws {
    try self.run { running, client in
      running.server.health.setReady(for: .seconds(1))
      let stream = client.open(Self.watch)
      try client.message([], on: stream, isEnd: true)
      try client.wait("both statuses") { client.answers[stream]?.payloads.count == 2 }
      #expect(client.answers[stream]?.payloads == [[8, 1], [8, 2]])
    }
  }

  @Test("A drain ends the streams that watch, and waits for none of them")
  func drain() throws {
    try self.run { running, client in
      let stream = client.open(Self.watch)
      try client.message([], on: stream, isEnd: true)
      try client.wait("a status") { client.answers[stream]?.payloads.count == 1 }
      let hasStopped = Monitor(false)
      running.server.drain { hasStopped.update { $0 = true } }
      let answer = try client.answer(on: stream)
      #expect(answer.payloads == [[8, 1], [8, 2]] && answer.code == .unavailable)
      try hasStopped.wait("the server's end") { $0 }
    }
  }

  @Test("Calls in flight do not keep who watches during a drain, and probes still come through")
  func probeDuringDrain() throws {
    let held = TestHandler.silent(startsOnFirstMessage: true)
    try self.run(["/t/held": held]) { running, client in
      let call = client.open("/t/held")
      try client.message([], on: call, isEnd: true)
      _ = try held.handled.call()
      client.answersPings = false
      running.server.drain {}
      // The drain's ping is not answered, so the connection still takes calls.
      #expect(try client.unary(Self.check).payloads == [[8, 2]])
      let answer = try client.unary(Self.watch)
      #expect(answer.payloads == [[8, 2]] && answer.code == .unavailable)
    }
  }

  @Test("The health service neither counts against the limit of calls nor is bound by it")
  func limit() throws {
    var configuration = ServerConfiguration()
    configuration.maximumConcurrentCalls = 1
    let held = TestHandler.silent()
    try self.run(["/t/held": held], configuration: configuration) { running, client in
      let stream = client.open(Self.watch)
      try client.message([], on: stream, isEnd: true)
      try client.wait("a status") { client.answers[stream]?.payloads.count == 1 }
      #expect(running.server.admission.activeCalls == 0)
      client.open("/t/held")
      try client.barrier()
      #expect(try client.unary("/t/held").code == .resourceExhausted)
      #expect(try client.unary(Self.check).code == .ok)
      #expect(running.server.admission.activeCalls == 1)
    }
  }

  @Test("Names that are too long are not watched, and only so many streams are")
  func watchLimits() throws {
    let limit = 300
    var configuration = ServerConfiguration()
    configuration.maximumHealthWatchers = limit
    try self.run(configuration: configuration) { running, client in
      let name = String(repeating: "a", count: 1025)
      let request = [0x0a, 0x81, 0x08] + Array(name.utf8)
      #expect(try client.unary(Self.watch, request).code == .invalidArgument)
      #expect(try client.unary(Self.check, request).code == .notFound)
      let longest = client.open(Self.watch)
      try client.message([0x0a, 0x80, 0x08] + name.utf8.dropLast(), on: longest, isEnd: true)
      try client.wait("a status") { client.answers[longest]?.payloads.count == 1 }
      for _ in 1..<limit {
        try client.message([], on: client.open(Self.watch))
      }
      try poll("all watchers") { running.server.health.watcherCount == limit }
      #expect(try client.unary(Self.watch).code == .resourceExhausted)
      client.writer.reset(longest)
      try client.barrier()
      let next = client.open(Self.watch)
      try client.message([], on: next)
      try client.wait("a status") { client.answers[next]?.payloads.count == 1 }
    }
  }

  @Test("A client that does not read is told the newest status when it does")
  func slowWatcher() throws {
    var configuration = ServerConfiguration()
    configuration.transport.http2.sendBufferSize = 64
    try self.run(configuration: configuration) { running, _ in
      // A window of 14 bytes: two statuses.
      let client = try running.connect(settings: [(4, 14)])
      client.grantsWindows = false
      let health = running.server.health
      let stream = client.open(Self.watch)
      try client.message([], on: stream, isEnd: true)
      try client.wait("a status") { client.answers[stream]?.payloads.count == 1 }
      for index in 0..<1001 { health.set(index % 2 == 0 ? .notServing : .serving, for: "") }
      try client.barrier()
      client.send { $0.windowUpdate(stream, increment: 1 << 20) }
      try client.wait("the newest status") {
        client.answers[stream].map { $0.payloads.count > 2 && $0.payloads.last == [8, 2] } ?? false
      }
      try client.barrier()
      let payloads = try #require(client.answers[stream]?.payloads)
      #expect(payloads.count < 100 && payloads.last == [8, 2])
      // No status twice in a row.
      #expect(zip(payloads, payloads.dropFirst()).allSatisfy { $0 != $1 })
    }
  }

  @Test("Threads that change a status leave its watcher with what it is in the end")
  func threads() throws {
    try self.run { running, client in
      let health = running.server.health
      let stream = client.open(Self.watch)
      try client.message(self.request("a.B"), on: stream, isEnd: true)
      try client.wait("a status") { client.answers[stream]?.payloads.count == 1 }
      let pool = NIOThreadPool(numberOfThreads: 4)
      pool.start()
      let group = MultiThreadedEventLoopGroup.singleton
      let ends = [ServingStatus.serving, .notServing, .unknown, .serving].map { status in
        pool.runIfActive(eventLoop: group.next()) {
          for _ in 0..<500 {
            health.set(status, for: "a.B")
            health.setReady(for: .seconds(60))
          }
        }
      }
      for end in ends { try end.wait() }
      try pool.syncShutdownGracefully()
      let last = HealthMessages.response(try #require(health.status(of: "a.B")))
      try client.barrier()
      try client.wait("the last status") { client.answers[stream]?.payloads.last == last }
      let payloads = try #require(client.answers[stream]?.payloads)
      #expect(zip(payloads, payloads.dropFirst()).allSatisfy { $0 != $1 })
    }
  }

  @Test("A response is compressed for who asks for it, and a request may be")
  func compression() throws {
    var configuration = ServerConfiguration()
    configuration.compression = .gzip
    try self.run(configuration: configuration) { running, client in
      running.server.health.add((1...50).map { "some.package.of.many.Service\($0)" })
      let compressed = try Compression.compress(ByteBuffer(bytes: self.request("")), .gzip)
      let stream = client.open(Self.check, ["grpc-encoding": "gzip"])
      try client.message(
        Array(compressed.readableBytesView),
        on: stream,
        isEnd: true,
        isCompressed: true
      )
      #expect(try client.answer(on: stream).payloads == [[8, 1]])
      let answer = try client.unary(Self.list, [], ["grpc-accept-encoding": "gzip"])
      let message = try #require(answer.messages.first)
      #expect(message.isCompressed)
      let list = try Compression.decompress(message.payload, .gzip, maximumLength: 1 << 20)
      let statuses = running.server.health.statuses
      #expect(Array(list.readableBytesView) == HealthMessages.listResponse(statuses))
    }
  }

  @Test("A watch has a deadline as every call")
  func deadline() throws {
    try self.run { running, client in
      let answer = try client.unary(Self.watch, [], ["grpc-timeout": "50m"])
      #expect(answer.payloads == [[8, 1]] && answer.code == .deadlineExceeded)
      try poll("the watcher's end") { running.server.health.watcherCount == 0 }
    }
  }
}
