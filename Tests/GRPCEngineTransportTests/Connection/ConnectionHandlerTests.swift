import GRPCEngineHTTP2
import GRPCEngineStatistics
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import NIOEmbedded
import NIOHPACK
import Testing
import TransportFuzz

/// The life of a connection, on a clock that stands still unless a test moves it.
final class ConnectionHandlerTests {
  private let recorder = Recorder()

  deinit { self.recorder.forget() }
  private static let maxStreamID = Int(Int32.max)

  @Test("A peer that says nothing is closed when its time is over")
  func handshakeTimeout() throws {
    let connection = try EmbeddedConnection(acceptor: self.recorder)
    connection.advance(by: .seconds(119))
    #expect(connection.isOpen)
    connection.advance(by: .seconds(1))
    #expect(!connection.isOpen)
    #expect(connection.registry.count == 0)
  }

  @Test("A peer that sends its preface byte by byte is greeted")
  func slowPreface() throws {
    let connection = try EmbeddedConnection(acceptor: self.recorder)
    let client = TestClient(connection)
    client.writer.preface()
    client.writer.settings()
    for byte in client.writer.take().readableBytesView {
      connection.write(ByteBuffer(bytes: [byte]))
    }
    try client.barrier()
    #expect(connection.isOpen)
  }

  @Test("A silent peer with a call is pinged, and closed when it does not answer")
  func keepalive() throws {
    var configuration = TransportConfiguration()
    configuration.keepalive.interval = .seconds(10)
    configuration.keepalive.timeout = .seconds(3)
    let (client, connection) = try self.recorder.connect(configuration)
    client.open("/a/b")
    try client.barrier()
    connection.advance(by: .seconds(10))
    try client.wait("a ping") { client.pings.count == 1 }
    connection.advance(by: .seconds(5))
    #expect(connection.isOpen, "the ping was answered")
    client.answersPings = false
    connection.advance(by: .seconds(5))
    try client.wait("a ping") { client.pings.count == 2 }
    connection.advance(by: .seconds(2))
    #expect(connection.isOpen)
    connection.advance(by: .seconds(1))
    #expect(!connection.isOpen, "a half-open connection does not live on")
    #expect(self.recorder.receivers.first?.events == [.failed(.connectionLost)])
  }

  @Test("An idle connection is drained")
  func idle() throws {
    var configuration = TransportConfiguration()
    configuration.maxConnectionIdle = .seconds(30)
    let (client, connection) = try self.recorder.connect(configuration)
    connection.advance(by: .seconds(20))
    let stream = client.open("/a/b", isEnd: true)
    _ = try client.answer(on: stream)
    connection.advance(by: .seconds(29))
    try client.barrier()
    #expect(client.goAways == [])
    connection.advance(by: .seconds(1))
    try client.barrier()
    connection.advance(by: ConnectionLifecycle.lastCalls)
    try client.waitForClose()
    #expect(client.goAways.map(\.last) == [Self.maxStreamID, stream])
    #expect(client.goAways.map(\.code) == [ErrorCode.noError, ErrorCode.noError])
  }

  @Test("At its age a connection is drained, and after the grace its calls are cut off")
  func age() throws {
    var configuration = TransportConfiguration()
    configuration.maxConnectionAge = .seconds(100)
    configuration.maxConnectionAgeGrace = .seconds(10)
    let (client, connection) = try self.recorder.connect(configuration)
    client.open("/a/b")
    try client.barrier()
    // The spread of a tenth leaves this much in doubt.
    connection.advance(by: .seconds(89))
    try client.barrier()
    #expect(client.goAways == [])
    connection.advance(by: .seconds(21))
    try client.wait("GOAWAY") { !client.goAways.isEmpty }
    connection.advance(by: .seconds(11))
    #expect(!connection.isOpen)
    #expect(self.recorder.receivers.first?.events.first == .cancelled(.unavailable))
  }

  @Test("Pings that come too often end the connection, and say why")
  func tooManyPings() throws {
    let (client, connection) = try self.recorder.connect()
    client.open("/a/b")
    for ping in UInt64(1)...4 { client.writer.ping(ping) }
    try client.waitForClose()
    #expect(client.goAways.map(\.code) == [ErrorCode.enhanceYourCalm])
    #expect(client.goAways.map(\.debug) == ["too_many_pings"])
    #expect(!connection.isOpen)
  }

  @Test("What leaves as the peer's windows open clears its strikes, however long it has waited")
  func pingsAmidALargeAnswer() throws {
    self.recorder.onEnd = { stream in
      stream.sendHeaders(Recorder.headers)
      stream.sendEnd(
        messages: ByteBuffer(repeating: 0, count: 1 << 20),
        trailers: Recorder.trailers
      )
    }
    let (client, connection) = try self.recorder.connect()
    client.grantsWindows = false
    let stream = client.open("/a/b", isEnd: true)
    try client.wait("a first window full") { client.answers[stream]?.receivedBytes == 65_535 }
    // As grpc-go does: a ping as data comes, and another one once that is answered.
    for ping in UInt64(1)...10 {
      client.send { writer in
        writer.windowUpdate(0, increment: 50_000)
        writer.windowUpdate(stream, increment: 50_000)
        writer.ping(ping)
      }
      try client.wait("the ping's answer") { client.pingAcks.contains(ping) }
    }
    #expect(client.goAways == [])
    #expect(connection.isOpen)
  }

  @Test("Pings amid an answer for which the peer opens no window are strikes")
  func pingsAmidAnUnreadAnswer() throws {
    self.recorder.onEnd = { stream in
      stream.sendHeaders(Recorder.headers)
      stream.sendEnd(
        messages: ByteBuffer(repeating: 0, count: 1 << 20),
        trailers: Recorder.trailers
      )
    }
    let (client, _) = try self.recorder.connect()
    client.grantsWindows = false
    let stream = client.open("/a/b", isEnd: true)
    try client.wait("a first window full") { client.answers[stream]?.receivedBytes == 65_535 }
    for ping in UInt64(1)...5 { client.writer.ping(ping) }
    try client.waitForClose()
    #expect(client.goAways.map(\.debug) == ["too_many_pings"])
  }

  @Test("What this server sends of its own accord clears no strikes")
  func pingsAmidControlFrames() throws {
    let (client, _) = try self.recorder.connect()
    client.open("/a/b")
    for ping in UInt64(1)...5 {
      client.writer.settings()
      client.writer.ping(ping)
    }
    try client.waitForClose()
    #expect(client.goAways.map(\.debug) == ["too_many_pings"])
  }

  // MARK: The first flight

  /// A peer that opens calls before it has read anything.
  private func firstFlight(
    _ count: Int,
    _ configuration: TransportConfiguration = TransportConfiguration()
  ) throws -> (TestClient, EmbeddedConnection, [Int]) {
    let connection = try EmbeddedConnection(configuration, acceptor: self.recorder)
    let client = TestClient(connection)
    client.writer.preface()
    client.writer.settings()
    let streams = (0..<count).map { _ in client.open("/a/b", isEnd: true) }
    return (client, connection, streams)
  }

  @Test("Calls that come before the settings are acknowledged are served", arguments: [101, 1000])
  func callsBeforeSettings(count: Int) throws {
    let (client, connection, streams) = try self.firstFlight(count)
    for stream in streams { #expect(try client.answer(on: stream).code == .ok) }
    #expect(connection.isOpen)
    #expect(client.goAways == [])
    try client.barrier()
  }

  @Test("Streams past the limit are refused, acknowledged or not, and the others served")
  func streamsPastTheLimit() throws {
    var configuration = TransportConfiguration()
    configuration.http2.maxConcurrentStreams = 5
    self.recorder.onEnd = { _ in }
    let (client, connection, streams) = try self.firstFlight(150, configuration)
    for stream in streams.dropFirst(5) {
      #expect(try client.answer(on: stream).reset == ErrorCode.refusedStream)
    }
    try client.barrier()
    #expect(client.settings?[3] == 5)
    let late = client.open("/a/b")
    #expect(try client.answer(on: late).reset == ErrorCode.refusedStream)
    #expect(connection.isOpen)
    let receivers = self.recorder.receivers
    #expect(receivers.map(\.stream.id) == Array(streams.prefix(5)))
    receivers[2].stream.sendEnd(messages: nil, trailers: Recorder.trailersOnly)
    receivers[2].stream.connection.flush()
    #expect(try client.answer(on: streams[2]).code == .ok)
    client.open("/a/b")
    try client.barrier()
    #expect(self.recorder.receivers.count == 6, "one that ends makes room for another")
  }

  @Test("A window below HTTP/2's own does not hold before its peer has read of it")
  func smallWindow() throws {
    var configuration = TransportConfiguration()
    configuration.http2.streamWindowSize = 1024
    let connection = try EmbeddedConnection(configuration, acceptor: self.recorder)
    let client = TestClient(connection)
    client.writer.preface()
    client.writer.settings()
    let stream = client.open("/a/b")
    let message = FrameWriter.message([UInt8](repeating: 7, count: 16_000))
    for _ in 0..<4 { client.writer.data(message, on: stream) }
    client.writer.data(ByteBuffer(), on: stream, isEnd: true)
    #expect(try client.answer(on: stream).code == .ok)
    #expect(client.settings?[4] == 1024)
    try client.barrier()
    #expect(connection.isOpen)
    // It is read and acknowledged now.
    let other = client.open("/a/b")
    client.writer.data(ByteBuffer(repeating: 0, count: 2000), on: other)
    #expect(try client.answer(on: other).reset == ErrorCode.flowControlError)
  }

  @Test("Data for many streams that this server has reset is borne")
  func dataAfterManyResets() throws {
    let (client, connection) = try self.recorder.connect()
    let streams = (0..<1000).map { _ in client.open("/a/b", ["grpc-encoding": "br"]) }
    for stream in streams { #expect(try client.answer(on: stream).code == .unimplemented) }
    try client.barrier()
    for stream in streams {
      client.writer.data(FrameWriter.message([1]), on: stream, isEnd: true)
    }
    try client.barrier()
    #expect(connection.isOpen)
    #expect(client.goAways == [])
  }

  @Test(
    "A header table of any size may be offered, at first or later",
    arguments: [0, 100, 1 << 16, UInt32.max]
  )
  func headerTable(size: UInt32) throws {
    let client = TestClient(try EmbeddedConnection(acceptor: self.recorder))
    try client.handshake([(1, size)])
    let first = client.open("/a/b", isEnd: true)
    #expect(try client.answer(on: first).code == .ok)
    for size in [4096, size, 0, size] { client.send { $0.settings([(1, size)]) } }
    for _ in 0..<3 {
      let stream = client.open("/a/b", isEnd: true)
      #expect(try client.answer(on: stream).code == .ok)
    }
    #expect(client.goAways == [])
  }

  // MARK: Drain

  @Test("A drain serves what was opened before its ping is answered, and nothing after")
  func drain() throws {
    let (client, connection) = try self.recorder.connect()
    client.answersPings = false
    let first = client.open("/a/b")
    try client.barrier()
    connection.registry.drain {}
    try client.wait("GOAWAY") { client.goAways.count == 1 && client.pings.count == 1 }
    #expect(client.goAways.map(\.last) == [Self.maxStreamID])
    let second = client.open("/a/b", isEnd: true)
    #expect(try client.answer(on: second).code == .ok)
    let ping = try #require(client.pings.first)
    client.send { $0.ping(ping, isAck: true) }
    let late = client.open("/a/b", isEnd: true)
    #expect(try client.answer(on: late).code == .ok, "it may have been under way")
    connection.advance(by: ConnectionLifecycle.lastCalls)
    try client.wait("GOAWAY") { client.goAways.count == 2 }
    #expect(client.goAways.last?.last == late)
    let third = client.open("/a/b", isEnd: true)
    try client.barrier()
    #expect(client.answers[third]?.headers == nil, "GOAWAY has said that it is not served")
    #expect(self.recorder.receivers.count == 3)
    try client.data(ByteBuffer(), on: first, isEnd: true)
    #expect(try client.answer(on: first).code == .ok)
    try client.waitForClose()
  }

  @Test("A stream that comes with the answer to a drain's ping is served")
  func streamBehindPingAnswer() throws {
    let (client, connection) = try self.recorder.connect()
    let first = client.open("/a/b", isEnd: true)
    _ = try client.answer(on: first)
    client.answersPings = false
    connection.registry.drain {}
    connection.advance(by: .zero)
    try client.wait("a ping") { client.pings.count == 1 }
    client.writer.ping(client.pings[0], isAck: true)
    let second = client.open("/a/b", isEnd: true)
    #expect(try client.answer(on: second).code == .ok)
    connection.advance(by: ConnectionLifecycle.lastCalls)
    try client.waitForClose()
    #expect(client.goAways.map(\.last) == [Self.maxStreamID, second])
  }

  @Test("A connection that gives most of it back counts as what it holds")
  func reportedMemory() throws {
    let (client, connection) = try self.recorder.connect()
    let quiet = client.open("/a/b")
    let stream = client.open("/a/b")
    let memory = connection.registry.memory
    let message = FrameWriter.message([UInt8](repeating: 0, count: 4100))
    let part = try #require(message.getSlice(at: 0, length: 4104))
    try client.data(part, on: stream)
    #expect(memory.held > 4096)
    try client.data(ByteBuffer(bytes: [0]), on: stream, isEnd: true)
    _ = try client.answer(on: stream)
    #expect(memory.held < 1024)
    #expect(client.answers[quiet]?.isEnded == false)
    // So does one that held it for no stream: half of a long SETTINGS, and then its other half.
    for _ in 0..<6 { client.open("/a/b") }
    try client.barrier()
    let settings = ByteBuffer(repeating: 0x42, count: 3894)
    let frame = RawFrame(type: FrameType.settings, stream: 0, payload: settings)
    client.send { $0.frame(frame, length: 3900) }
    #expect(memory.held > 4096)
    client.send { $0.raw([UInt8](repeating: 0x42, count: 6)) }
    #expect(memory.held < 3000)
  }

  @Test(
    "Half a header block, or half a frame, ends the connection in time",
    arguments: [true, false]
  )
  func unfinished(isBlock: Bool) throws {
    let (client, connection) = try self.recorder.connect()
    client.send { writer in
      if isBlock {
        writer.frame(RawFrame(type: FrameType.headers, stream: 1, payload: ByteBuffer(bytes: [0])))
      } else {
        writer.raw([0, 0, 5, FrameType.headers, 0x4, 0, 0, 0, 1, 0])
      }
    }
    for _ in 0..<5 {
      connection.advance(by: .seconds(11))
      if isBlock {
        let part = ByteBuffer(bytes: [0])
        client.send { $0.frame(RawFrame(type: FrameType.continuation, stream: 1, payload: part)) }
      }
    }
    #expect(connection.isOpen)
    connection.advance(by: .seconds(5))
    try client.waitForClose()
    #expect(client.goAways.map(\.code) == [ErrorCode.enhanceYourCalm])
  }

  @Test("A busy connection whose reads end amid frames is served on")
  func readsAmidFrames() throws {
    let (client, connection) = try self.recorder.connect()
    client.open("/a/b")
    client.send { $0.raw([0, 0, 0, FrameType.settings]) }
    for _ in 0..<20 {
      connection.advance(by: .seconds(10))
      client.send { $0.raw([0, 0, 0, 0, 0, 0, 0, 0, FrameType.settings]) }
    }
    #expect(connection.isOpen)
    #expect(client.goAways == [])
  }

  private func connect(
    _ count: Int,
    to registry: ConnectionRegistry
  ) throws -> ([EmbeddedConnection], [TestClient]) {
    let connections = try (0..<count).map { _ in
      try EmbeddedConnection(acceptor: self.recorder, registry: registry)
    }
    let clients = connections.map { TestClient($0) }
    for client in clients { try client.handshake() }
    return (connections, clients)
  }

  private func sendHalfBlock(_ client: TestClient, _ length: Int) {
    let part = ByteBuffer(repeating: 0, count: 16_000)
    client.send { writer in
      writer.frame(RawFrame(type: FrameType.headers, stream: 1, payload: part))
      for _ in 1..<(length / 16_000) {
        writer.frame(RawFrame(type: FrameType.continuation, stream: 1, payload: part))
      }
    }
  }

  /// Connections that hold so much of unfinished header blocks, on a pool that the last of them overflows.
  ///
  /// - Parameter ages: for how many seconds by then; none for all at once.
  private func overflow(
    limit: Int,
    _ amounts: [Int],
    ages: [Int64] = []
  ) throws -> [EmbeddedConnection] {
    let registry = ConnectionRegistry(memory: limit)
    let (connections, clients) = try self.connect(amounts.count, to: registry)
    for (index, amount) in amounts.enumerated() {
      if !ages.isEmpty { connections[index].advance(by: .seconds(ages[0] - ages[index])) }
      let block = ByteBuffer(repeating: 0, count: amount)
      clients[index].send { $0.frame(RawFrame(type: FrameType.headers, stream: 1, payload: block)) }
    }
    return connections
  }

  @Test("Where one that is asked for memory has gone, the next one is asked")
  func reliefBehindOneThatHasGone() throws {
    let connections = try self.overflow(limit: 25_000, [16_000, 15_500, 10_000])
    connections[0].channel.close(promise: nil)
    for connection in connections { connection.advance(by: .seconds(1)) }
    #expect(connections.map(\.isOpen) == [false, false, true])
  }

  @Test(
    "Who has held memory for long is asked for it before who holds more of it",
    arguments: [
      ([10_000, 16_000, 5000], [9, 0, 0], [false, true, true]),
      // A second more is not what decides where both have kept it for long.
      ([10_000, 16_000, 5000], [16, 15, 0], [true, false, true]),
      // What is next to nothing is kept for ever.
      ([1000, 16_000, 15_000], [500, 9, 0], [true, false, true]),
    ]
  )
  func reliefByCost(amounts: [Int], ages: [Int64], remain: [Bool]) throws {
    let connections = try self.overflow(limit: 26_000, amounts, ages: ages)
    for connection in connections { connection.advance(by: .seconds(1)) }
    #expect(connections.map(\.isOpen) == remain)
  }

  @Test("What was taken from a peer it has not given: it is asked again before others")
  func reliefOfTheSameOne() throws {
    let registry = ConnectionRegistry(memory: 235_000)
    let (connections, clients) = try self.connect(3, to: registry)
    let half = FrameWriter.message([UInt8](repeating: 0, count: 30_000))
    let part = half.getSlice(at: half.readerIndex, length: 10_000) ?? ByteBuffer()
    for _ in 0..<8 {
      let stream = clients[0].open("/a/b")
      for _ in 0..<2 { try clients[0].data(part, on: stream) }
    }
    connections[0].advance(by: .milliseconds(5100))
    connections[1].advance(by: .milliseconds(5000))
    connections[2].advance(by: .milliseconds(5200))
    for (index, taken) in [(1, 4), (2, 6)] {
      self.sendHalfBlock(clients[index], 80_000)
      for connection in connections { connection.advance(by: .milliseconds(10)) }
      let ended = self.recorder.receivers.count {
        $0.events.contains(.cancelled(.resourceExhausted))
      }
      #expect(ended == taken)
      #expect(connections.map(\.isOpen) == [true, true, true])
    }
  }

  @Test("Memory that stays is not forgotten for a little that comes and goes beside it")
  func reliefOfFidgeters() throws {
    let registry = ConnectionRegistry(memory: 200_000)
    let (connections, clients) = try self.connect(2, to: registry)
    let half = FrameWriter.message([UInt8](repeating: 0, count: 30_000))
    func sendHalf(_ length: Int) throws -> Int {
      let stream = clients[0].open("/a/b")
      let part = half.getSlice(at: half.readerIndex, length: length) ?? ByteBuffer()
      try clients[0].data(part, on: stream)
      return stream
    }
    for _ in 0..<8 { _ = try sendHalf(16_000) }
    for _ in 0..<40 {
      let stream = try sendHalf(6000)
      clients[0].send { $0.reset(stream) }
      connections[0].advance(by: .milliseconds(100))
    }
    connections[1].advance(by: .milliseconds(3800))
    self.sendHalfBlock(clients[1], 80_000)
    connections[1].advance(by: .milliseconds(200))
    for connection in connections { connection.advance(by: .milliseconds(10)) }
    let ended = self.recorder.receivers.count {
      $0.events.contains(.cancelled(.resourceExhausted))
    }
    #expect(ended == 4)
    #expect(connections[1].isOpen)
  }

  @Test("Nobody is asked for memory once there is room again")
  func lateRelief() throws {
    let connections = try self.overflow(limit: 25_000, [5000, 16_000, 12_000])
    connections[2].close()
    for connection in connections { connection.advance(by: .seconds(1)) }
    #expect(connections.map(\.isOpen) == [true, true, false])
  }

  /// A socket that is found broken as it is written to.
  private final class BrokenSocket: ChannelOutboundHandler {
    typealias OutboundIn = IOData

    func flush(context: ChannelHandlerContext) { context.close(promise: nil) }
  }

  @Test("What a connection held for no stream is given back when it ends amid a write")
  func overheadOfBrokenConnection() throws {
    let (client, connection) = try self.recorder.connect()
    try connection.channel.pipeline.syncOperations.addHandler(BrokenSocket(), position: .first)
    let block = ByteBuffer(repeating: 0, count: 8000)
    client.send { writer in
      writer.settings()
      writer.frame(RawFrame(type: FrameType.headers, stream: 1, payload: block))
    }
    connection.advance(by: .zero)
    #expect(!connection.isOpen)
    #expect(connection.registry.memory.held == 0)
  }

  /// A socket that takes nothing for a while.
  private final class FullSocket: ChannelOutboundHandler {
    typealias OutboundIn = IOData

    var isFull = true
    var refusesWrites = false
    /// What the buffers of all that was written take.
    var memory = 0

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
      if case .byteBuffer(let bytes) = self.unwrapOutboundIn(data) {
        self.memory += bytes.storageCapacity
      }
      guard self.refusesWrites else { return context.write(data, promise: promise) }
      promise?.fail(ChannelError.outputClosed)
    }

    func flush(context: ChannelHandlerContext) { if !self.isFull { context.flush() } }
  }

  @Test("What the socket does not take counts until it does", arguments: [false, true])
  func backlog(refusesWrites: Bool) throws {
    let (client, connection) = try self.recorder.connect()
    let socket = FullSocket()
    self.recorder.onEnd = { _ in }
    for _ in 0..<3 { client.open("/a/b", isEnd: true) }
    try client.barrier()
    let pipeline = connection.channel.pipeline.syncOperations
    try pipeline.addHandler(socket, position: .first)
    let message = FrameWriter.message([UInt8](repeating: 7, count: 20_000))
    for (index, receiver) in self.recorder.receivers.enumerated() {
      if index == 1 { socket.refusesWrites = refusesWrites }
      receiver.stream.sendHeaders(Recorder.headers)
      receiver.stream.sendEnd(messages: message, trailers: Recorder.trailers)
      receiver.stream.connection.flush()
      connection.advance(by: .zero)
    }
    #expect(connection.registry.memory.held > 20_000)
    socket.refusesWrites = false
    socket.isFull = false
    connection.channel.flush()
    connection.advance(by: .milliseconds(1))
    if !refusesWrites { #expect(connection.registry.memory.held < 4096) }
    connection.close()
    #expect(connection.registry.memory.held == 0)
  }

  @Test("Many frames of some bytes that the socket does not take share their buffers")
  func smallBacklog() throws {
    let (client, connection) = try self.recorder.connect()
    let socket = FullSocket()
    try connection.channel.pipeline.syncOperations.addHandler(socket, position: .first)
    for _ in 0..<900 {
      client.send { $0.settings() }
      connection.advance(by: .zero)
    }
    #expect(socket.memory <= 64 << 10)
    #expect(connection.registry.memory.held >= 900 * 9 - (16 << 10))
    socket.isFull = false
    connection.channel.flush()
    connection.advance(by: .milliseconds(1))
    try client.wait("all acknowledgements") { client.settingsAcks >= 900 }
    #expect(connection.registry.memory.held < 4096)
  }

  @Test("An error that comes with the answer to a drain's ping is the last that is said")
  func errorBehindPingAnswer() throws {
    let (client, connection) = try self.recorder.connect()
    _ = try client.answer(on: client.open("/a/b", isEnd: true))
    client.answersPings = false
    connection.registry.drain {}
    connection.advance(by: .zero)
    try client.wait("a ping") { client.pings.count == 1 }
    let ping = client.pings[0]
    client.send { writer in
      writer.ping(ping, isAck: true)
      writer.data(ByteBuffer(), on: 0)
    }
    try client.waitForClose()
    #expect(client.goAways.map(\.code) == [ErrorCode.noError, ErrorCode.protocolError])
  }

  @Test("What is held for no stream counts: half a header block, answers that nobody reads")
  func overhead() throws {
    let (client, connection) = try self.recorder.connect()
    let memory = connection.registry.memory
    let before = memory.held
    let block = ByteBuffer(repeating: 0, count: 8000)
    client.send { $0.frame(RawFrame(type: FrameType.headers, stream: 1, payload: block)) }
    #expect(memory.held - before >= 8000)
    connection.close()
    #expect(memory.held == 0)

    let (flooding, other) = try self.recorder.connect()
    other.setWritable(false)
    flooding.send { $0.ping() }  // what is read has the connection see that
    flooding.send { writer in
      for _ in 0..<900 { writer.settings() }
    }
    #expect(other.registry.memory.held >= 8000)
    other.setWritable(true)
    try flooding.barrier()
    #expect(other.registry.memory.held < 4096)
  }

  @Test("A registry is empty when the last connection has gone, and takes none while it drains")
  func registry() throws {
    let registry = ConnectionRegistry()
    let connections = try (0..<3).map { _ in
      try EmbeddedConnection(acceptor: self.recorder, registry: registry)
    }
    for connection in connections { try TestClient(connection).handshake() }
    #expect(registry.count == 3)
    let isEmpty = Monitor(false)
    registry.drain { isEmpty.update { $0 = true } }
    for connection in connections { connection.advance(by: .zero) }
    #expect(!isEmpty.current)
    for connection in connections {
      // It has made no call yet, and is told after a moment. Then nobody answers the ping.
      connection.advance(by: ConnectionLifecycle.welcome)
      connection.advance(by: .seconds(5))
      #expect(!connection.isOpen)
    }
    #expect(isEmpty.current)
    let late = try EmbeddedConnection(acceptor: self.recorder, registry: registry)
    #expect(!late.isOpen)
    #expect(registry.count == 0)
  }

  /// The socket of a peer that takes its time to read: the end of what is written has to wait.
  private final class SlowSocket: ChannelOutboundHandler {
    typealias OutboundIn = IOData
    private(set) var unwritten: EventLoopPromise<Void>?

    func close(context: ChannelHandlerContext, mode: CloseMode, promise: EventLoopPromise<Void>?) {
      if mode == .output { self.unwritten = promise } else { context.close(promise: promise) }
    }
  }

  /// A connection that has drained, with its last answer not yet read by its peer.
  private func drainedUnread() throws -> (EmbeddedConnection, SlowSocket) {
    let (client, connection) = try self.recorder.connect()
    let socket = SlowSocket()
    try connection.channel.pipeline.syncOperations.addHandler(socket, position: .first)
    let stream = client.open("/a/b")
    try client.barrier()
    connection.registry.drain {}
    connection.advance(by: .zero)
    // Nobody answers the ping.
    connection.advance(by: .seconds(5))
    try client.data(ByteBuffer(), on: stream, isEnd: true)
    #expect(try client.answer(on: stream).code == .ok)
    connection.advance(by: .zero)
    return (connection, socket)
  }

  @Test("A drained connection stays while its peer reads the last answer, however long that takes")
  func drainWaitsForReader() throws {
    let (connection, socket) = try self.drainedUnread()
    let unwritten = try #require(socket.unwritten)
    connection.advance(by: .seconds(60))
    #expect(connection.isOpen)
    unwritten.succeed()
    connection.advance(by: .milliseconds(999))
    #expect(connection.isOpen, "the peer hangs up first, if it can")
    connection.advance(by: .milliseconds(1))
    #expect(!connection.isOpen)
  }

  @Test("A connection that is cancelled does not wait for its peer")
  func cancelDoesNotWaitForReader() throws {
    let (connection, socket) = try self.drainedUnread()
    #expect(socket.unwritten != nil)
    connection.registry.cancel(Status(code: .unavailable))
    connection.advance(by: .zero)
    #expect(!connection.isOpen)
    socket.unwritten?.fail(ChannelError.ioOnClosedChannel)
  }

  @Test("Cancelling ends every call and the connection")
  func cancel() throws {
    let (client, connection) = try self.recorder.connect()
    for _ in 0..<3 { client.open("/a/b") }
    try client.barrier()
    connection.registry.cancel(Status(code: .unavailable))
    try client.waitForClose()
    for receiver in self.recorder.receivers {
      #expect(receiver.events == [.cancelled(.unavailable), .failed(.connectionLost)])
    }
  }

  // MARK: Errors of the connection

  private static let brokenConnections: [(String, UInt32, @Sendable (inout FrameWriter) -> Void)] =
    [
      ("DATA on the connection", ErrorCode.protocolError, { $0.data(ByteBuffer(), on: 0) }),
      ("DATA on a stream never opened", ErrorCode.protocolError, { $0.data(ByteBuffer(), on: 7) }),
      ("a stream with an even number", ErrorCode.protocolError, { $0.headers(request, on: 2) }),
      (
        "a stream number that goes back", ErrorCode.protocolError,
        { writer in
          writer.headers(request, on: 5, isEnd: true)
          writer.headers(request, on: 3, isEnd: true)
        }
      ),
      ("a reset of a stream never opened", ErrorCode.protocolError, { $0.reset(9) }),
      (
        "a frame above the limit", ErrorCode.frameSizeError,
        { $0.data(ByteBuffer(repeating: 0, count: 16_385), on: 1) }
      ),
      (
        "a ping of seven bytes", ErrorCode.frameSizeError,
        {
          $0.frame(
            RawFrame(
              type: FrameType.ping,
              stream: 0,
              payload: ByteBuffer(bytes: [1, 2, 3, 4, 5, 6, 7])
            )
          )
        }
      ),
      (
        "settings of five bytes", ErrorCode.frameSizeError,
        {
          $0.frame(
            RawFrame(
              type: FrameType.settings,
              stream: 0,
              payload: ByteBuffer(bytes: [1, 2, 3, 4, 5])
            )
          )
        }
      ),
      (
        "a window of 2^31 in the settings", ErrorCode.flowControlError,
        { $0.settings([(4, 1 << 31)]) }
      ),
      ("a frame size below the least", ErrorCode.protocolError, { $0.settings([(5, 1)]) }),
      (
        "a connection window past 2^31", ErrorCode.flowControlError,
        { $0.windowUpdate(0, increment: Int(Int32.max)) }
      ),
      ("a window update of 0", ErrorCode.protocolError, { $0.windowUpdate(0, increment: 0) }),
      (
        "a CONTINUATION without HEADERS", ErrorCode.protocolError,
        { $0.frame(RawFrame(type: FrameType.continuation, stream: 1)) }
      ),
      (
        "a frame inside a header block", ErrorCode.protocolError,
        { writer in
          writer.frame(RawFrame(type: FrameType.headers, stream: 1))
          writer.ping()
        }
      ),
      (
        "a header block that is no HPACK", ErrorCode.compressionError,
        {
          $0.frame(
            RawFrame(
              type: FrameType.headers,
              flags: FrameFlag.endHeaders,
              stream: 1,
              payload: ByteBuffer(bytes: [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])
            )
          )
        }
      ),
      (
        "a header block of very many pieces", ErrorCode.enhanceYourCalm,
        { writer in
          writer.frame(RawFrame(type: FrameType.headers, stream: 1))
          for _ in 0..<100 { writer.frame(RawFrame(type: FrameType.continuation, stream: 1)) }
        }
      ),
      (
        "padding longer than its frame", ErrorCode.protocolError,
        { writer in
          writer.headers(request, on: 1)
          writer.frame(
            RawFrame(
              type: FrameType.data,
              flags: FrameFlag.padded,
              stream: 1,
              payload: ByteBuffer(bytes: [200, 1, 2])
            )
          )
        }
      ),
      (
        "a push from a client", ErrorCode.protocolError,
        { writer in
          writer.headers(request, on: 1)
          var payload = ByteBuffer(integer: UInt32(2))
          payload.writeImmutableBuffer(writer.block(request))
          writer.frame(
            RawFrame(
              type: FrameType.pushPromise,
              flags: FrameFlag.endHeaders,
              stream: 1,
              payload: payload
            )
          )
        }
      ),
    ]

  private static let request = FrameWriter.request("/a/b")

  @Test("What breaks HTTP/2 ends the connection with GOAWAY", arguments: brokenConnections.indices)
  func connectionErrors(index: Int) throws {
    let (name, code, write) = Self.brokenConnections[index]
    let (client, connection) = try self.recorder.connect()
    client.send(write)
    try client.waitForClose()
    #expect(client.goAways.last?.code == code, "\(name)")
    #expect(!connection.isOpen, "\(name)")
    for receiver in self.recorder.receivers {
      #expect(receiver.events.last == .failed(.connectionLost) || receiver.events.last == .finished)
    }
  }

  @Test(
    "A peer that does not speak HTTP/2 is closed",
    arguments: [
      "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
      "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}" + String(repeating: "\u{0}", count: 40),
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
    ]
  )
  func otherProtocols(text: String) throws {
    let connection = try EmbeddedConnection(acceptor: self.recorder)
    connection.write(ByteBuffer(string: text))
    #expect(!connection.isOpen)
    #expect(connection.registry.count == 0)
  }

  // MARK: Errors of a stream

  @Test("What breaks one stream resets that stream and no other")
  func streamErrors() throws {
    let (client, connection) = try self.recorder.connect()
    let neighbour = client.open("/a/b")
    let tooLong = client.open("/a/b", ["content-length": "1"])
    client.writer.data(ByteBuffer(bytes: [1, 2]), on: tooLong)
    #expect(try client.answer(on: tooLong).reset == ErrorCode.protocolError)
    let overflow = client.open("/a/b")
    client.writer.windowUpdate(overflow, increment: Int(Int32.max))
    #expect(try client.answer(on: overflow).reset == ErrorCode.flowControlError)
    let late = client.open("/a/b", isEnd: true)
    _ = try client.answer(on: late)
    try client.data(ByteBuffer(), on: neighbour, isEnd: true)
    #expect(try client.answer(on: neighbour).code == .ok)
    #expect(connection.isOpen)
  }

  @Test("Frames for a stream that the server has ended are borne")
  func framesAfterTheEnd() throws {
    let (client, connection) = try self.recorder.connect()
    let stream = client.open("/a/b")
    try client.barrier()
    let server = try #require(self.recorder.receivers.first?.stream)
    server.sendEnd(messages: nil, trailers: Recorder.trailersOnly)
    server.connection.flush()
    #expect(try client.answer(on: stream).code == .ok)
    for _ in 0..<3 { client.writer.data(FrameWriter.message([1]), on: stream) }
    client.writer.windowUpdate(stream, increment: 100)
    client.writer.reset(stream)
    try client.barrier()
    #expect(connection.isOpen)
    #expect(client.goAways == [])
  }

  @Test("Streams that end together are all let go", arguments: [2, 100, 200])
  func streamsThatEndTogether(count: Int) throws {
    self.recorder.onEnd = { stream in
      stream.sendHeaders(Recorder.headers)
      stream.sendEnd(messages: FrameWriter.message([1]), trailers: Recorder.trailers)
    }
    let (client, connection) = try self.recorder.connect()
    client.grantsWindows = false
    client.send { $0.settings([(4, 0)]) }
    let streams = (0..<count).map { _ in client.open("/a/b", isEnd: true) }
    try client.barrier()
    #expect(connection.registry.statistics.slot[.streams].value == UInt64(count))
    client.send { $0.settings([(4, 100)]) }
    for stream in streams { #expect(try client.answer(on: stream).code == .ok) }
    #expect(
      self.recorder.receivers.map(\.events) == Array(repeating: [.end, .finished], count: count)
    )
    #expect(connection.registry.statistics.slot[.streams].value == 0)
    connection.registry.drain {}
    connection.advance(by: .seconds(1))
    try client.barrier()
    connection.advance(by: ConnectionLifecycle.lastCalls)
    try client.waitForClose()
    #expect(connection.registry.memory.held == 0)
  }

  @Test("A peer that has the server reset its calls again and again is ended")
  func madeYouReset() throws {
    let (client, _) = try self.recorder.connect()
    for _ in 0..<1001 {
      let stream = client.open("/a/b")
      client.writer.headers([":path": "/late"], on: stream, isEnd: true)
    }
    try client.waitForClose()
    #expect(client.goAways.map(\.debug) == ["too_many_stream_errors"])
    #expect(self.recorder.receivers.allSatisfy { $0.events.count == 1 })
  }

  // MARK: Requests that open no call

  @Test("A request that is not gRPC gets an HTTP status and no call")
  func notGRPC() throws {
    let (client, _) = try self.recorder.connect()
    var headers = Self.request
    headers.replaceOrAdd(name: "content-type", value: "text/html")
    let stream = client.open(headers: headers, isEnd: true)
    let answer = try client.answer(on: stream)
    #expect(answer.httpStatus == "415" && answer.isTrailersOnly && answer.code == nil)
    #expect(self.recorder.receivers.isEmpty)
  }

  @Test("A refused request that goes on sending is asked to stop")
  func refusedWhileSending() throws {
    let (client, _) = try self.recorder.connect()
    let stream = client.open("/a/b", ["grpc-encoding": "br"])
    try client.wait("a reset") { client.answers[stream]?.reset != nil }
    let answer = try client.answer(on: stream)
    #expect(answer.code == .unimplemented && answer.isTrailersOnly)
    #expect(answer.headers?.first(name: "grpc-accept-encoding") == "identity, deflate, gzip")
    #expect(answer.reset == ErrorCode.noError)
  }

  @Test("Headers somewhat above the limit cost the call, far above it the connection")
  func oversizedHeaders() throws {
    let (client, connection) = try self.recorder.connect()
    let stream = client.open("/a/b", ["x": String(repeating: "a", count: 20_000)], isEnd: true)
    #expect(try client.answer(on: stream).code == .resourceExhausted)
    #expect(connection.isOpen)
    client.open("/a/b", ["x": String(repeating: "a", count: 200_000)], isEnd: true)
    try client.waitForClose()
    #expect(client.goAways.count == 1)
    #expect(self.recorder.receivers.isEmpty)
  }
}
