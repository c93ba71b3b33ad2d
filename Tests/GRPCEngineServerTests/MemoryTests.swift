import GRPCEngineServer
import GRPCEngineStatistics
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import NIOHPACK
import Testing
import TransportFuzz

/// What peers can make a server hold: counted as the server counts it.
struct MemoryTests {
  private static let mib = 1 << 20

  private static func configuration(
    connection: Int = .max,
    pool: Int = .max
  ) -> ServerConfiguration {
    var configuration = ServerConfiguration()
    configuration.transport.memory.connection = connection
    configuration.transport.memory.pool = pool
    return configuration
  }

  private func held(_ running: RunningServer) -> Int {
    Int(running.server.statistics.slot[.heldBytes].value)
  }

  private func shed(_ running: RunningServer) -> Int {
    Int(running.server.statistics.slot[.callsShed].value)
  }

  /// The size of headers by RFC 9113 section 6.5.2.
  private static func size(of headers: HPACKHeaders) -> Int {
    headers.reduce(0) { $0 + $1.name.utf8.count + $1.value.utf8.count + 32 }
  }

  /// Sends all but the last byte of a message on each of many streams, as far as windows let it.
  private func sendHalves(_ client: TestClient, streams: [Int], length: Int) throws {
    let message = FrameWriter.message([UInt8](repeating: 0, count: length))
    let half = message.getSlice(at: message.readerIndex, length: length + 4) ?? ByteBuffer()
    var left = streams.map { ($0, half) }
    var hasMoved = true
    while hasMoved {
      hasMoved = false
      for index in left.indices {
        let stream = left[index].0
        let room = min(client.room(on: stream), 16_384, left[index].1.readableBytes)
        guard room > 0, client.answers[stream]?.isEnded != true,
          let part = left[index].1.readSlice(length: room)
        else { continue }
        client.writer.data(part, on: stream)
        client.took(room, on: stream)
        hasMoved = true
      }
      try client.barrier()
    }
  }

  @Test("Large messages that are never finished cost a bounded amount, and others are served")
  func unfinishedMessages() throws {
    try RunningServer.run(
      ["/t/echo": TestHandler.echo()],
      configuration: Self.configuration(connection: 8 * Self.mib)
    ) { running in
      let client = try running.connect()
      let streams = (0..<40).map { _ in client.open("/t/echo") }
      try self.sendHalves(client, streams: streams, length: Self.mib)
      #expect(self.held(running) <= 8 * Self.mib)
      #expect(self.held(running) > 2 * Self.mib)
      #expect(self.shed(running) == 0, "they wait at their windows")
      #expect(try running.connect().unary("/t/echo", [1]).payloads == [[1]])
      #expect(try client.unary("/t/echo", [2]).payloads == [[2]])
      client.connection.close()
      try poll("the memory's return") { self.held(running) <= 4096 }
    }
  }

  @Test("Many large messages of a peer that finishes them are all taken")
  func finishedMessages() throws {
    try RunningServer.run(
      ["/t/sum": TestHandler.sum()],
      configuration: Self.configuration(connection: Self.mib)
    ) { running in
      let client = try running.connect()
      let streams = (0..<10).map { _ in client.open("/t/sum") }
      let message = FrameWriter.message([UInt8](repeating: 1, count: Self.mib / 2))
      var left = streams.map { ($0, message) }
      try client.wait("every answer") {
        for index in left.indices {
          let stream = left[index].0
          while left[index].1.readableBytes > 0 {
            let room = min(client.room(on: stream), 16_384, left[index].1.readableBytes)
            guard room > 0, let part = left[index].1.readSlice(length: room) else { break }
            client.writer.data(part, on: stream, isEnd: left[index].1.readableBytes == 0)
            client.took(room, on: stream)
          }
        }
        client.flush()
        return streams.allSatisfy { client.answers[$0]?.isEnded == true }
      }
      #expect(streams.allSatisfy { client.answers[$0]?.code == .ok })
      #expect(self.shed(running) == 0)
    }
  }

  @Test("Halves that fill the account end from the newest on, and the oldest can be finished")
  func halves() throws {
    try RunningServer.run(
      ["/t/echo": TestHandler.echo()],
      configuration: Self.configuration(connection: Self.mib)
    ) { running in
      let client = try running.connect()
      // However little each may send at first, it is too much for so many.
      let streams = (0..<4000).map { _ in client.open("/t/echo") }
      try self.sendHalves(client, streams: streams, length: 250)
      let headers = streams.count * Self.size(of: FrameWriter.request("/t/echo"))
      #expect(self.held(running) <= Self.mib + headers)
      #expect(self.shed(running) > 0)
      #expect(client.answers[streams[3999]]?.code == .resourceExhausted)
      let details = "The client makes the server hold too much memory"
      #expect(client.answers[streams[3999]]?.details == details)
      try client.data(ByteBuffer(bytes: [0]), on: streams[0], isEnd: true)
      #expect(try client.answer(on: streams[0]).code == .ok)
    }
  }

  @Test("Where many have begun, each begins with less, and all can be finished")
  func beginnings() throws {
    try RunningServer.run(
      ["/t/echo": TestHandler.echo()],
      configuration: Self.configuration(connection: Self.mib)
    ) { running in
      let client = try running.connect()
      let streams = (0..<100).map { _ in client.open("/t/echo") }
      try self.sendHalves(client, streams: streams, length: 50_000)
      #expect((client.settings?[4]).map { 100 * Int($0) <= Self.mib / 4 } == true)
      #expect(self.held(running) <= Self.mib)
      #expect(self.shed(running) == 0)
      for stream in streams { client.writer.reset(stream) }
      try client.barrier()
      #expect(client.settings?[4] == 65_535)
      #expect(try client.unary("/t/echo", [UInt8](repeating: 1, count: 60_000)).code == .ok)
    }
  }

  @Test("Headers of calls that say no more count, and past the limit the next is refused")
  func headers() throws {
    let handler = TestHandler.silent()
    try RunningServer.run(
      ["/t/silent": handler, "/t/echo": TestHandler.echo()],
      configuration: Self.configuration(connection: Self.mib)
    ) { running in
      let client = try running.connect()
      let headers: HPACKHeaders = ["x": String(repeating: "a", count: 10_000)]
      let streams = (0..<200).map { _ in client.open("/t/silent", headers) }
      try client.barrier()
      let fit = Self.mib / Self.size(of: FrameWriter.request("/t/silent", headers))
      try client.wait("the refusals") {
        streams.dropFirst(fit).allSatisfy { client.answers[$0]?.code == .resourceExhausted }
      }
      try client.barrier()
      #expect(streams.prefix(fit).allSatisfy { client.answers[$0]?.isEnded == false })
      #expect(self.shed(running) == 200 - fit)
      for stream in streams.prefix(2) { client.writer.reset(stream) }
      #expect(try client.unary("/t/echo", [1]).code == .ok)
    }
  }

  @Test("When all connections hold too much, the one that costs the most loses its newest calls")
  func pool() throws {
    try RunningServer.run(
      ["/t/silent": TestHandler.silent(), "/t/echo": TestHandler.echo()],
      configuration: Self.configuration(pool: 2 * Self.mib)
    ) { running in
      let small = try running.connect()
      let quiet = small.open("/t/silent")
      try small.message([UInt8](repeating: 0, count: 50_000), on: quiet)
      try small.barrier()
      let greedy = try running.connect()
      let streams = (0..<60).map { _ in greedy.open("/t/silent") }
      for stream in streams { try greedy.message([UInt8](repeating: 0, count: 60_000), on: stream) }
      try greedy.wait("an end") {
        greedy.answers[streams[59]]?.code == .resourceExhausted
      }
      try poll("relief") { self.held(running) <= 2 * Self.mib }
      #expect(greedy.answers[streams[0]]?.isEnded == false, "the oldest go on")
      #expect(try small.unary("/t/echo", [1]).code == .ok)
      #expect(small.answers[quiet]?.isEnded == false)
    }
  }

  @Test("Peers that leave header blocks unfinished make room for others")
  func unfinishedBlocks() throws {
    try RunningServer.run(
      ["/t/echo": TestHandler.echo()],
      configuration: Self.configuration(pool: Self.mib)
    ) { running in
      let part = ByteBuffer(repeating: 0, count: 16_000)
      let peers = try (0..<100).map { _ in
        let peer = try running.connect()
        peer.send { writer in
          writer.frame(RawFrame(type: FrameType.headers, stream: 1, payload: part))
          for _ in 0..<3 {
            writer.frame(RawFrame(type: FrameType.continuation, stream: 1, payload: part))
          }
        }
        return peer
      }
      try poll("relief") { self.held(running) <= Self.mib }
      let message = [UInt8](repeating: 7, count: 50_000)
      #expect(try running.connect().unary("/t/echo", message).payloads == [message])
      for peer in peers { peer.connection.close() }
      try poll("the memory's return") { self.held(running) <= 4096 }
    }
  }

  @Test("Answers that a peer does not read count, and are reset when all is too much")
  func unreadAnswers() throws {
    try RunningServer.run(
      ["/t/countdown": TestHandler.countdown(), "/t/echo": TestHandler.echo()],
      configuration: Self.configuration(pool: 4 * Self.mib)
    ) { running in
      let client = try running.connect()
      client.grantsWindows = false
      let request = FrameWriter.message(countdown(1, of: 1 << 20))
      let streams = (0..<10).map { _ in
        let stream = client.open("/t/countdown")
        client.writer.data(request, on: stream, isEnd: true)
        return stream
      }
      try client.wait("a reset") { client.answers[streams[9]]?.reset != nil }
      #expect(client.answers[streams[9]]?.reset == ErrorCode.enhanceYourCalm)
      try poll("relief") { self.held(running) <= 4 * Self.mib }
      #expect(try running.connect().unary("/t/echo", [1]).code == .ok)
      #expect(client.answers[streams[0]]?.reset == nil)
    }
  }

  private func ask(_ client: TestClient, _ path: String, _ message: [UInt8]) {
    let stream = client.open(path)
    client.writer.data(FrameWriter.message(message), on: stream, isEnd: true)
  }

  @Test(
    "What waits behind an answer that a peer does not read counts as well",
    arguments: [(1 << 20, 0), (0, 6000)]
  )
  func behindUnreadAnswers(message: Int, details: Int) throws {
    let handler = TestHandler(startsOnFirstMessage: true) { call, _ in
      for length in [1, message] where length > 0 {
        let bytes = [UInt8](repeating: 7, count: length)
        _ = try? bytes.withUnsafeBytes { try call.send($0, mayCompress: false) }
      }
      if details > 0 {
        let text = String(repeating: "a", count: details)
        call.finish(Status(code: .aborted, details: text), isLast: true)
      } else if !call.onTermination({ _ in call.handlerReturned() }) {
        call.handlerReturned()
      }
    }
    try RunningServer.run(
      ["/t/behind": handler, "/t/countdown": TestHandler.countdown()],
      configuration: Self.configuration()
    ) { running in
      let client = try running.connect()
      client.grantsWindows = false
      // It takes all of the connection's window.
      self.ask(client, "/t/countdown", countdown(1, of: 1 << 20))
      try client.wait("a full window") {
        client.answers.values.contains { $0.receivedBytes == 65_535 }
      }
      let before = self.held(running)
      for _ in 0..<20 { self.ask(client, "/t/behind", [1]) }
      try client.barrier()
      try poll("the account") { self.held(running) - before > 20 * max(message, details) }
      client.connection.close()
      try poll("the memory's return") { self.held(running) <= 4096 }
    }
  }

  @Test("Half a message at the end of a stream is let go, whatever of the answer is unread")
  func truncatedMessage() throws {
    try RunningServer.run(
      ["/t/countdown": TestHandler.countdown()],
      configuration: Self.configuration()
    ) { running in
      let client = try running.connect()
      client.grantsWindows = false
      let stream = client.open("/t/countdown")
      try client.data(FrameWriter.message(countdown(1, of: 1 << 20)), on: stream)
      try client.wait("a full window") { client.answers[stream]?.receivedBytes == 65_535 }
      try poll("the answer's account") { self.held(running) > 1 << 19 }
      let before = self.held(running)
      var half = FrameWriter.message([UInt8](repeating: 0, count: 100_000))
      try client.data(half.readSlice(length: 50_000) ?? ByteBuffer(), on: stream, isEnd: true)
      try client.barrier()
      try poll("its return") { self.held(running) < before + 10_000 }
      client.connection.close()
    }
  }

  @Test("A message larger than everything allowed comes when nothing else is held")
  func oneLargeMessage() throws {
    try RunningServer.run(
      ["/t/sum": TestHandler.sum()],
      configuration: Self.configuration(connection: Self.mib, pool: Self.mib)
    ) { running in
      let client = try running.connect()
      let answer = try client.unary("/t/sum", [UInt8](repeating: 1, count: 2 * Self.mib))
      #expect(answer.code == .ok)
      #expect(self.shed(running) == 0)
    }
  }
}
