import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineWire
import NIOCore
import NIOHPACK
import Testing

/// What a well-behaved client sees, over a real socket.
struct CallKindTests {
  @Test("A unary call is answered with headers, a message and trailers")
  func unary() throws {
    try RunningServer.run(["/t/echo": TestHandler.echo()]) { running in
      let client = try running.connect()
      let answer = try client.unary("/t/echo", [1, 2, 3])
      #expect(answer.httpStatus == "200")
      #expect(answer.headers?.first(name: "content-type") == "application/grpc")
      #expect(answer.payloads == [[1, 2, 3]])
      #expect(answer.trailers == ["grpc-status": "0"])
      #expect(answer.reset == nil)
    }
  }

  @Test("Messages of every size come back whole", arguments: [0, 1, 65_530, 65_531, 500_000])
  func sizes(length: Int) throws {
    try RunningServer.run(["/t/echo": TestHandler.echo()]) { running in
      let client = try running.connect()
      let message = (0..<length).map { UInt8(truncatingIfNeeded: $0 >> 3) }
      #expect(try client.unary("/t/echo", message).payloads == [message])
    }
  }

  @Test("A server stream sends all its messages in order, then its status")
  func serverStream() throws {
    try RunningServer.run(["/t/countdown": TestHandler.countdown()]) { running in
      let client = try running.connect()
      let answer = try client.unary("/t/countdown", countdown(1000, of: 500))
      #expect(answer.messages.count == 1000)
      #expect(answer.payloads.allSatisfy { $0.count == 500 })
      #expect(answer.code == .ok)
      #expect(try client.unary("/t/countdown", countdown(0, of: 0)).isTrailersOnly)
    }
  }

  @Test("A client stream is summed up")
  func clientStream() throws {
    try RunningServer.run(["/t/sum": TestHandler.sum()]) { running in
      let client = try running.connect()
      let stream = client.open("/t/sum")
      for _ in 0..<1000 { try client.message([UInt8](repeating: 1, count: 100), on: stream) }
      try client.data(ByteBuffer(), on: stream, isEnd: true)
      let answer = try client.answer(on: stream)
      #expect(answer.payloads == [[0, 0, 0, 0, 0, 1, 0x86, 0xA0]])
      #expect(answer.code == .ok)
      let empty = client.open("/t/sum", isEnd: true)
      #expect(try client.answer(on: empty).payloads == [[0, 0, 0, 0, 0, 0, 0, 0]])
    }
  }

  @Test("A conversation answers each message as it comes")
  func conversation() throws {
    try RunningServer.run(["/t/talk": TestHandler.conversation()]) { running in
      let client = try running.connect()
      let stream = client.open("/t/talk")
      for index in 0..<200 {
        try client.message([UInt8(index)], on: stream)
        try client.wait("answer \(index)") { client.answers[stream]?.messages.count == index + 1 }
      }
      try client.data(ByteBuffer(), on: stream, isEnd: true)
      let answer = try client.answer(on: stream)
      #expect(answer.payloads == (0..<200).map { [UInt8($0)] })
      #expect(answer.code == .ok)
    }
  }

  @Test("Calls of one connection are answered independently, and one burst is one batch")
  func concurrentCalls() throws {
    try RunningServer.run(["/t/echo": TestHandler.echo(), "/t/held": TestHandler.silent()]) {
      running in
      let client = try running.connect()
      client.open("/t/held")
      let streams = (0..<200).map { index in
        let stream = client.open("/t/echo")
        client.writer.data(
          FrameWriter.message([UInt8(index)]),
          on: stream,
          isEnd: true
        )
        return stream
      }
      for (index, stream) in streams.enumerated() {
        let answer = try client.answer(on: stream)
        #expect(answer.payloads == [[UInt8(index)]])
      }
    }
  }

  @Test("Metadata comes back as it went, repeated keys, bytes and all")
  func metadata() throws {
    try RunningServer.run(["/t/metadata": TestHandler.metadataEcho()]) { running in
      let client = try running.connect()
      let sent: HPACKHeaders = [
        "x-text": "a", "x-text": "b ~", "x-bin": "AQID", "x-bin": "/w", "x-empty": "",
      ]
      let answer = try client.unary("/t/metadata", [], sent)
      for name in ["x-text", "x-bin", "x-empty"] {
        #expect(answer.headers?[canonicalForm: name] == sent[canonicalForm: name])
        #expect(answer.trailers?[canonicalForm: name] == sent[canonicalForm: name])
      }
      #expect(answer.trailers?.contains(name: "te") == false)
      #expect(answer.code == .ok)
    }
  }

  @Test("A status travels with its code and any text", arguments: 0...16)
  func status(code: Int) throws {
    let status = Status(
      code: try #require(StatusCode(rawValue: code)),
      details: "50 % „fertig“\r\n"
    )
    try RunningServer.run(["/t/status": TestHandler.status(status)]) { running in
      let answer = try running.connect().unary("/t/status")
      #expect(answer.code == status.code)
      #expect(answer.details == status.details)
      #expect(answer.isTrailersOnly && answer.payloads == [])
    }
  }

  @Test("A method that nobody serves is UNIMPLEMENTED")
  func unknownMethod() throws {
    try RunningServer.run([:]) { running in
      let answer = try running.connect().unary("/t/none")
      #expect(answer.code == .unimplemented && answer.isTrailersOnly)
      #expect(answer.details == "Method not found!")
    }
  }

  @Test("A unary call without a message is UNIMPLEMENTED, and its handler never runs")
  func noMessage() throws {
    let handler = TestHandler.echo()
    try RunningServer.run(["/t/echo": handler]) { running in
      let client = try running.connect()
      let stream = client.open("/t/echo", isEnd: true)
      let answer = try client.answer(on: stream)
      #expect(answer.code == .unimplemented)
      #expect(handler.handled.entries.current.calls.isEmpty)
    }
  }

  @Test(
    "Messages are compressed both ways as the call says",
    arguments: [CompressionAlgorithm.gzip, .deflate]
  )
  func compression(algorithm: CompressionAlgorithm) throws {
    var configuration = ServerConfiguration()
    configuration.compression = algorithm
    try RunningServer.run(
      ["/t/echo": TestHandler.echo()],
      configuration: configuration
    ) { running in
      let client = try running.connect()
      let message = [UInt8](repeating: 9, count: 10_000)
      let compressed = Array(
        try Compression.compress(ByteBuffer(bytes: message), algorithm).readableBytesView
      )
      let stream = client.open(
        "/t/echo",
        ["grpc-encoding": algorithm.name, "grpc-accept-encoding": algorithm.name]
      )
      try client.message(compressed, on: stream, isEnd: true, isCompressed: true)
      let answer = try client.answer(on: stream)
      #expect(answer.headers?.first(name: "grpc-encoding") == algorithm.name)
      let received = try #require(answer.messages.first)
      #expect(received.isCompressed)
      let plain = try Compression.decompress(received.payload, algorithm, maximumLength: 10_000)
      #expect(Array(plain.readableBytesView) == message)
      // A client that does not say so cannot read it.
      let other = try client.unary("/t/echo", message)
      #expect(other.payloads == [message] && other.messages.first?.isCompressed == false)
    }
  }

  @Test("A server with several event loops serves connections on all of them")
  func eventLoops() throws {
    var configuration = ServerConfiguration()
    configuration.eventLoopThreads = 3
    try RunningServer.run(
      ["/t/echo": TestHandler.echo()],
      configuration: configuration
    ) { running in
      let clients = try (0..<6).map { _ in try running.connect() }
      #expect(running.server.connectionCount == 6)
      for client in clients { #expect(try client.unary("/t/echo", [1]).payloads == [[1]]) }
    }
  }
}

/// The request of `TestHandler.countdown`.
func countdown(_ count: UInt32, of length: UInt32) -> [UInt8] {
  var request = ByteBuffer()
  request.writeMultipleIntegers(count, length)
  return Array(request.readableBytesView)
}
