import GRPCEngineServer
import GRPCEngineStatistics
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import Glibc
import NIOCore
import NIOHPACK
import Testing
import TransportFuzz

/// Peers that break the rules, over real sockets: the server stays up, forgets their calls, and its
/// other connections notice nothing.
struct HostilePeerTests {
  private static var methods: [String: any MethodHandler] {
    [
      "/t/echo": TestHandler.echo(), "/t/sum": TestHandler.sum(),
      "/t/talk": TestHandler.conversation(), "/t/countdown": TestHandler.countdown(),
      "/t/silent": TestHandler.silent(), "/t/metadata": TestHandler.metadataEcho(),
    ]
  }

  /// A connection's whole life as a good client would send it.
  private static func validBytes() -> [UInt8] {
    var writer = FrameWriter()
    writer.preface()
    writer.settings([(4, 100_000)])
    writer.settingsAck()
    let requests: [(String, HPACKHeaders, [[UInt8]])] = [
      ("/t/echo", ["x-bin": "AQID", "grpc-timeout": "10S"], [[1, 2, 3]]),
      ("/t/sum", ["grpc-accept-encoding": "gzip"], [[1], [2], []]),
      ("/t/talk", [:], [[9, 9], [8]]),
      ("/t/countdown", [:], [countdown(5, of: 10)]),
      ("/t/silent", [:], [[0]]),
      ("/t/metadata", ["x-text": "a b c", "x-text": "d"], [[7]]),
    ]
    for (index, (path, extra, messages)) in requests.enumerated() {
      let stream = 2 * index + 1
      writer.headers(FrameWriter.request(path, extra), on: stream, fragment: 60)
      for message in messages { writer.data(FrameWriter.message(message), on: stream, padding: 3) }
      writer.windowUpdate(stream, increment: 10)
      if index == 2 {
        writer.reset(stream)
      } else {
        writer.data(ByteBuffer(), on: stream, isEnd: true)
      }
    }
    writer.windowUpdate(0, increment: 1000)
    writer.ping(42)
    writer.goAway()
    return Array(writer.bytes.readableBytesView)
  }

  @Test("A stream that is reset counts once, for who has reset it")
  func resetsAreCounted() throws {
    try RunningServer.run(Self.methods) { running in
      let client = try running.connect()
      for stream in [1, 3, 5] {
        client.writer.headers(FrameWriter.request("/t/silent"), on: stream)
        client.writer.data(FrameWriter.message([0]), on: stream)
      }
      client.writer.reset(1)
      // RFC 9113 section 6.9: an error of the stream, which the server resets.
      client.writer.windowUpdate(3, increment: 0)
      try client.barrier()
      let slot = running.server.statistics.slot
      #expect(slot[.streamsResetByPeer].value == 1)
      #expect(slot[.streamsResetByServer].value == 1)
      client.connection.close()
      try poll("the end of the connection") { slot[.streams].value == 0 }
      #expect(slot[.streamsResetByPeer].value == 1, "nobody has reset what a lost connection had")
    }
  }

  @Test("Bytes that were changed on the way harm nobody else", arguments: 0..<8)
  func mutations(seed: Int) throws {
    let valid = Self.validBytes()
    var random = SplitMix(seed: UInt64(seed))
    try RunningServer.run(Self.methods) { running in
      let neighbour = try running.connect()
      for _ in 0..<25 {
        let bytes = mutated(valid, &random)
        let connection = try SocketConnection(to: running.address)
        // In pieces, as a network would deliver them.
        var rest = ByteBuffer(bytes: bytes)
        while rest.readableBytes > 0 {
          let length = min(rest.readableBytes, 1 + Int(random.next() % 400))
          if let piece = rest.readSlice(length: length) { connection.write(piece) }
        }
        #expect(try neighbour.unary("/t/echo", [1]).payloads == [[1]])
        connection.close()
      }
      try poll("the hostile connections' end") { running.server.connectionCount == 1 }
      try running.waitForRelease()
      #expect(try neighbour.unary("/t/echo", [2]).payloads == [[2]])
    }
  }

  @Test("A connection that is cut off after any of its bytes is forgotten")
  func truncations() throws {
    let valid = Self.validBytes()
    for length in 0...valid.count {
      try EmbeddedServer.run(Self.methods) { embedded in
        let connection = try EmbeddedConnection(acceptor: embedded.server)
        connection.write(ByteBuffer(bytes: valid.prefix(length)))
        connection.close()
        try #require(embedded.server.admission.activeCalls == 0, "after \(length) bytes")
        try #require(connection.registry.count == 0, "after \(length) bytes")
      }
    }
  }

  @Test(
    "Bytes that come one at a time are understood as well as in one piece",
    arguments: [1, 7, 0]
  )
  func trickle(length: Int) throws {
    try EmbeddedServer.run(Self.methods) { embedded in
      let connection = try EmbeddedConnection(acceptor: embedded.server)
      var rest = ByteBuffer(bytes: Self.validBytes())
      let length = length == 0 ? rest.readableBytes : length
      while let piece = rest.readSlice(length: min(length, rest.readableBytes)),
        piece.readableBytes > 0
      {
        connection.write(piece)
      }
      var reader = FrameReader()
      var statuses: [Int: String] = [:]
      while let bytes = try? connection.read("more") {
        reader.append(bytes)
        while let frame = try reader.next() {
          if case .headers(let stream, let headers, true) = frame {
            statuses[stream] = headers.first(name: "grpc-status")
          }
        }
      }
      #expect(statuses == [1: "0", 3: "0", 7: "0", 11: "0"])
      connection.close()
    }
  }

  @Test("Peers that connect and say nothing cost no call and stop nobody")
  func silentConnections() throws {
    try RunningServer.run(Self.methods) { running in
      let silent = try (0..<100).map { _ in try SocketConnection(to: running.address) }
      let client = try running.connect()
      #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
      #expect(running.server.connectionCount == 101)
      for connection in silent.prefix(50) { try connection.abort() }
      for connection in silent.dropFirst(50) { connection.close() }
      try poll("their end") { running.server.connectionCount == 1 }
      #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
    }
  }

  @Test("An answer before settings that may not be is written", arguments: [0, 1, 16_383])
  func frameSizeThatMayNotBe(value: UInt32) throws {
    try RunningServer.run(Self.methods) { running in
      let (client, neighbour) = (try running.connect(), try running.connect())
      let stream = client.open("/no/such", isEnd: true)
      client.send { $0.settings([(5, value)]) }
      try client.waitForClose()
      #expect(client.answers[stream]?.headers?.first(name: "grpc-status") == "12")
      #expect(client.goAways.map(\.code) == [1])
      #expect(client.goAways.map(\.last) == [stream], "it has been served: not to be tried again")
      #expect(try neighbour.unary("/t/echo", [1]).payloads == [[1]])
    }
  }

  /// Does something on a connection while a call of it waits, which is answered then.
  private func besidePatientCall(_ body: (TestClient) throws -> Void) throws {
    try RunningServer.run(Self.methods) { running in
      let client = try running.connect()
      let patient = client.open("/t/sum")
      try body(client)
      try client.message([1], on: patient, isEnd: true)
      #expect(try client.answer(on: patient).code == .ok)
      #expect(client.goAways.isEmpty)
    }
  }

  @Test("Calls that are cancelled together cost the others nothing", arguments: [false, true])
  func manyCancelledCalls(haveMessages: Bool) throws {
    try self.besidePatientCall { client in
      for _ in 0..<4 {
        let streams = (0..<1000).map { _ in client.open("/t/silent") }
        for stream in streams where haveMessages {
          client.writer.data(FrameWriter.message([1]), on: stream)
        }
        for stream in streams { client.writer.reset(stream) }
        try client.barrier()
      }
    }
  }

  @Test("What is under way for calls that have ended early costs the others nothing")
  func dataForManyEndedCalls() throws {
    try self.besidePatientCall { client in
      let streams = (0..<1500).map { _ in client.open("/no/such") }
      try client.barrier()
      for stream in streams { client.writer.data(FrameWriter.message([1]), on: stream) }
      try client.barrier()
    }
  }

  @Test("What follows a peer's own reset costs nothing, windows neither")
  func dataBehindResets() throws {
    try self.besidePatientCall { client in
      // More than the connection's window.
      for _ in 0..<20 {
        for _ in 0..<100 {
          let stream = client.open("/t/silent")
          client.writer.reset(stream)
          client.writer.data(ByteBuffer(repeating: 0, count: 1000), on: stream, isEnd: true)
        }
        try client.barrier()
      }
    }
  }

  @Test("A peer that says goodbye has its calls answered, whatever it names", arguments: [0, 1, 7])
  func goodbye(last: Int) throws {
    try RunningServer.run(Self.methods) { running in
      let client = try running.connect()
      let stream = client.open("/t/sum")
      try client.message([1], on: stream)
      client.send { $0.goAway(last: last) }
      try client.message([2], on: stream, isEnd: true)
      #expect(try client.answer(on: stream).code == .ok)
    }
  }

  @Test("A peer that pings whenever it gets data is a good one")
  func pingForEachAnswer() throws {
    try RunningServer.run(Self.methods) { running in
      let client = try running.connect()
      for number in 0..<1500 {
        #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
        client.send { $0.ping(UInt64(number)) }
      }
      #expect(try client.unary("/t/echo", [2]).payloads == [[2]])
      #expect(client.goAways.isEmpty)
    }
  }

  @Test("Frames without content are no fault, as long as they are no flood")
  func emptyFrames() throws {
    try RunningServer.run(Self.methods) { running in
      let client = try running.connect()
      let stream = client.open("/t/sum")
      for _ in 0..<3 {
        for _ in 0..<500 { client.writer.data(ByteBuffer(), on: stream) }
        try client.barrier()
        usleep(1_000_000)
      }
      try client.message([1], on: stream, isEnd: true)
      #expect(try client.answer(on: stream).code == .ok)
    }
  }

  @Test("What the fuzzer's properties say holds for random scripts", arguments: 0..<4)
  func randomScripts(seed: Int) {
    var random = SplitMix(seed: UInt64(seed) + 100)
    for _ in 0..<50 {
      let script = (0..<(20 + random.next() % 200)).map { _ in
        UInt8(truncatingIfNeeded: random.next())
      }
      #expect(TransportProperty.violation(by: script) == nil, "\(script)")
    }
  }

  private func mutated(_ bytes: [UInt8], _ random: inout SplitMix) -> [UInt8] {
    var bytes = bytes
    for _ in 0...(random.next() % 4) {
      // The preface stays mostly as it is: without it nothing else is read.
      let place = 24 + Int(random.next() % UInt64(bytes.count - 24))
      switch random.next() % 6 {
      case 0: bytes[place] ^= 1 << UInt8(random.next() % 8)
      case 1: bytes[place] = UInt8(truncatingIfNeeded: random.next())
      case 2: bytes.remove(at: place)
      case 3: bytes.insert(UInt8(truncatingIfNeeded: random.next()), at: place)
      case 4: bytes.removeSubrange(place...)
      default:
        let end = min(bytes.count, place + Int(random.next() % 200))
        bytes.insert(contentsOf: bytes[place..<end], at: place)
      }
      if bytes.count <= 25 { break }
    }
    return bytes
  }
}
