import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import NIOHPACK
import Testing
import TransportFuzz

/// What a peer may cost, and how it is told that it wants more.
struct LimitTests {
  @Test("Calls past the limit are RESOURCE_EXHAUSTED, and one that ends makes room for another")
  func admission() throws {
    let handler = TestHandler.silent()
    var configuration = ServerConfiguration()
    configuration.maximumConcurrentCalls = 3
    try RunningServer.run(
      ["/t/silent": handler, "/t/echo": TestHandler.echo()],
      configuration: configuration
    ) { running in
      let client = try running.connect()
      let other = try running.connect()
      let streams = (0..<3).map { _ in client.open("/t/silent") }
      try client.barrier()
      for refused in [client, other] {
        let answer = try refused.unary("/t/echo", [1])
        #expect(answer.code == .resourceExhausted && answer.isTrailersOnly)
        #expect(answer.details == "Concurrent RPC limit exceeded!")
      }
      client.writer.reset(streams[0])
      try client.barrier()
      for _ in 0..<5 { #expect(try other.unary("/t/echo", [1]).code == .ok) }
      #expect(running.server.admission.activeCalls == 2)
      #expect(running.server.admission.admittedCalls == 8)
    }
  }

  @Test("A call counts until its servicer has returned, not only until its answer")
  func admissionAfterTheAnswer() throws {
    let go = Monitor(false)
    let handler = ThreadedHandler(startsOnFirstMessage: true) { call in
      call.call.finish(.ok)
      try go.wait("the servicer's end") { $0 }
    }
    var configuration = ServerConfiguration()
    configuration.maximumConcurrentCalls = 1
    try RunningServer.run(["/t/long": handler], configuration: configuration) { running in
      let client = try running.connect()
      #expect(try client.unary("/t/long").code == .ok)
      #expect(try client.unary("/t/long").code == .resourceExhausted)
      go.update { $0 = true }
      try running.waitForRelease()
      #expect(try client.unary("/t/long").code == .ok)
    }
  }

  @Test("A message above the limit is RESOURCE_EXHAUSTED and costs its call only")
  func messageSize() throws {
    var configuration = ServerConfiguration()
    configuration.transport.maxReceiveMessageLength = 1000
    try RunningServer.run(["/t/echo": TestHandler.echo()], configuration: configuration) {
      running in
      let client = try running.connect()
      #expect(try client.unary("/t/echo", [UInt8](repeating: 1, count: 1000)).code == .ok)
      let answer = try client.unary("/t/echo", [UInt8](repeating: 1, count: 1001))
      #expect(answer.code == .resourceExhausted)
      #expect(answer.details == "Received message larger than max (1001 vs. 1000)")
      #expect(try client.unary("/t/echo", [1]).code == .ok)
    }
  }

  @Test("A small message that grows past the limit is RESOURCE_EXHAUSTED")
  func decompressedSize() throws {
    var configuration = ServerConfiguration()
    configuration.transport.maxReceiveMessageLength = 100_000
    try RunningServer.run(["/t/echo": TestHandler.echo()], configuration: configuration) {
      running in
      let client = try running.connect()
      let bomb = try Compression.compress(
        ByteBuffer(repeating: 0, count: 10_000_000),
        .gzip
      )
      let stream = client.open("/t/echo", ["grpc-encoding": "gzip"])
      try client.message(
        Array(bomb.readableBytesView),
        on: stream,
        isEnd: true,
        isCompressed: true
      )
      let answer = try client.answer(on: stream)
      #expect(answer.code == .resourceExhausted)
      #expect(answer.details == "Decompressed message larger than max")
    }
  }

  @Test("A message that is announced large and never comes buys no memory")
  func announcedSize() throws {
    let handler = TestHandler.echo()
    try EmbeddedServer.run(["/t/echo": handler]) { embedded in
      for _ in 0..<100 {
        let stream = embedded.client.open("/t/echo")
        try embedded.client.data(ByteBuffer(bytes: [0, 0, 0x3F, 0xFF, 0xFF, 1, 2, 3]), on: stream)
      }
      try embedded.client.barrier()
      #expect(embedded.server.admission.activeCalls == 100)
      #expect(handler.handled.entries.current.calls.isEmpty)
    }
  }

  @Test("A compressed flag without an encoding, and bytes that are not compressed, are INTERNAL")
  func badCompression() throws {
    try RunningServer.run(["/t/echo": TestHandler.echo()]) { running in
      let client = try running.connect()
      for (headers, details) in [
        (HPACKHeaders(), "Compression bit set but no encoding configured"),
        (["grpc-encoding": "gzip"], "Decompression failed due to zlib error"),
      ] {
        let stream = client.open("/t/echo", headers)
        try client.message([1, 2, 3], on: stream, isEnd: true, isCompressed: true)
        let answer = try client.answer(on: stream)
        #expect(answer.code == .internalError && answer.details == details)
      }
    }
  }

  @Test("A peer that opens more streams than it may loses those, and nothing else")
  func concurrentStreams() throws {
    var configuration = ServerConfiguration()
    configuration.transport.http2.maxConcurrentStreams = 5
    try RunningServer.run(["/t/silent": TestHandler.silent()], configuration: configuration) {
      running in
      let client = try running.connect()
      #expect(client.settings?[3] == 5)
      let streams = (0..<5).map { _ in client.open("/t/silent") }
      try client.barrier()
      #expect(running.server.admission.activeCalls == 5)
      client.writer.reset(streams[2])
      client.open("/t/silent")
      try client.barrier()
      #expect(running.server.admission.activeCalls == 5)
      let late = client.open("/t/silent")
      #expect(try client.answer(on: late).reset == ErrorCode.refusedStream)
      try client.barrier()
      #expect(client.goAways == [])
      #expect(running.server.admission.activeCalls == 5)
    }
  }

  @Test("Headers above the limit are RESOURCE_EXHAUSTED and cost their call only")
  func headerSize() throws {
    try RunningServer.run(["/t/echo": TestHandler.echo()]) { running in
      let client = try running.connect()
      let large: HPACKHeaders = ["x-large": String(repeating: "a", count: 20_000)]
      let stream = client.open("/t/echo", large)
      let answer = try client.answer(on: stream)
      #expect(answer.code == .resourceExhausted && answer.isTrailersOnly)
      #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
    }
  }

  @Test("A flood of resets ends its connection, and no other")
  func rapidReset() throws {
    // On a clock that stands still: a slow machine makes no flood.
    try EmbeddedServer.run(["/t/silent": TestHandler.silent(), "/t/echo": TestHandler.echo()]) {
      embedded in
      let neighbour = TestClient(try EmbeddedConnection(acceptor: embedded.server))
      try neighbour.handshake()
      let client = embedded.client
      for _ in 0..<10 {
        for _ in 0..<1000 { client.writer.reset(client.open("/t/silent")) }
        try client.barrier()
      }
      #expect(client.goAways == [], "as many calls may be cancelled in five seconds")
      client.writer.reset(client.open("/t/silent"))
      try client.waitForClose()
      #expect(client.goAways.last?.code == ErrorCode.enhanceYourCalm)
      #expect(embedded.server.admission.activeCalls == 0)
      #expect(try neighbour.unary("/t/echo", [1]).code == .ok)
      neighbour.connection.close()
    }
  }

  @Test(
    "A flood of empty frames or settings ends its connection, and no other",
    arguments: [0, 1, 2]
  )
  func floods(kind: Int) throws {
    try RunningServer.run(["/t/silent": TestHandler.silent(), "/t/echo": TestHandler.echo()]) {
      running in
      let neighbour = try running.connect()
      let client = try running.connect()
      let stream = client.open("/t/silent")
      for _ in 0..<5000 {
        switch kind {
        case 0: client.writer.data(ByteBuffer(), on: stream)
        case 1: client.writer.settings()
        default: client.writer.ping()
        }
      }
      try client.waitForClose()
      #expect(client.goAways.last?.code == ErrorCode.enhanceYourCalm)
      #expect(try neighbour.unary("/t/echo", [1]).code == .ok)
    }
  }
}
