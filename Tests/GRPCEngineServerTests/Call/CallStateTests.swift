import GRPCEngineHTTP2
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import Testing

@testable import GRPCEngineServer

struct CallStateTests {
  @Test("Any order of events", arguments: 0..<60 as Range<UInt64>)
  func anyOrder(seed: UInt64) {
    var random = SplitMix(seed: seed)
    for _ in 0..<100 {
      var simulation = CallSimulation(seed: random.next())
      for _ in 0..<40 where simulation.fault == nil { simulation.step() }
      simulation.settle()
      if let fault = simulation.fault {
        Issue.record("seed \(seed): \(fault)")
        return
      }
    }
  }

  @Test("A call that ends before its handler begins is abandoned, unless that has answered it")
  func abandoned() {
    let end = CallState.End(status: Status(code: .cancelled, details: ""), metadata: nil)
    for termination in [Call.Termination.cancelledByServer, .deadlineExceeded, .invalidRequest] {
      var state = CallSimulation.makeState()
      _ = state.end(end, as: termination)
      #expect(state.isAbandoned)
      let begins = state.begin()
      #expect(!begins && state.isAbandoned)
      var begun = CallSimulation.makeState()
      let hasBegun = begun.begin()
      _ = begun.end(end, as: termination)
      #expect(hasBegun && !begun.isAbandoned)
    }
    var lost = CallSimulation.makeState()
    _ = lost.streamLost()
    #expect(lost.isAbandoned)
    var answered = CallSimulation.makeState()
    _ = answered.end(end, as: .answered)
    #expect(!answered.isAbandoned)
    _ = answered.streamLost()
    #expect(!answered.isAbandoned)
  }

  @Test("Every one who waits for a message is called when one comes")
  func severalReaders() {
    var state = CallSimulation.makeState()
    #expect(state.waitUntilReadable {})
    #expect(state.waitUntilReadable {})
    let message = ReceivedMessage(payload: ByteBuffer(bytes: [1]), isCompressed: false)
    #expect(state.received(message).count == 2)
    #expect(!state.waitUntilReadable {})
  }
}

/// One call without stream and servicer: both do anything that they may do, in any order.
struct CallSimulation {
  private final class Counter: Sendable {
    // Touched by the one thread of a test only.
    nonisolated(unsafe) var calls = 0
  }

  private var random: SplitMix
  private var state = Self.makeState()
  private(set) var fault: String?

  // What a peer and its stream see.
  private var isEnqueued = false
  private var isWriting = false
  private var isStreamLost = false
  private var isInboundEnded = false
  private var areHeadersOut = false
  private var isEndOut = false
  private var out: [UInt8] = []
  private var received = 0
  private var consumed = 0

  // What the servicer knows.
  private var sent: [UInt8] = []
  private var taken = 0
  private var bytesTaken = 0
  private var termination: Call.Termination?
  private var isMetadataGiven = false
  private var releases = 0
  private var readers: [Counter] = []
  private var writers: [Counter] = []
  private var callbacks: [Counter] = []

  static func makeState() -> CallState {
    CallState(encoding: .identity, isAdmitted: true, streamWindowSize: 100, sendBufferSize: 64)
  }

  init(seed: UInt64) { self.random = SplitMix(seed: seed) }

  private mutating func fail(_ text: String) { if self.fault == nil { self.fault = text } }

  private mutating func enqueue(_ mustEnqueue: Bool) {
    guard mustEnqueue else { return }
    if self.isEnqueued { self.fail("in the outbox twice") }
    self.isEnqueued = true
  }

  mutating func step() {
    switch Int.random(in: 0..<32, using: &self.random) {
    case 0..<4: self.receive()
    case 4: self.receiveEnd()
    case 5..<10: self.take()
    case 10..<13: self.waitUntilReadable()
    case 13..<17: self.send()
    case 17..<19: self.waitUntilWritable()
    case 19: self.sendMetadata()
    case 20..<25: self.writePending()
    case 25..<28: self.written()
    case 28: self.registerCallback()
    case 29: self.handlerReturned()
    case 30: self.end()
    default:
      if Int.random(in: 0..<4, using: &self.random) == 0 { self.loseStream() }
    }
    self.check()
  }

  // MARK: The peer

  private mutating func receive() {
    guard !self.isInboundEnded, !self.isStreamLost else { return }
    self.received += 1
    let payload = ByteBuffer(bytes: [UInt8(truncatingIfNeeded: self.received)])
    for waiter in self.state.received(ReceivedMessage(payload: payload, isCompressed: false)) {
      waiter()
    }
    if self.readers.contains(where: { $0.calls == 0 }) { self.fail("a reader sleeps on") }
  }

  private mutating func receiveEnd() {
    guard !self.isInboundEnded, !self.isStreamLost else { return }
    self.isInboundEnded = true
    for waiter in self.state.receivedEnd() { waiter() }
    if self.readers.contains(where: { $0.calls == 0 }) { self.fail("a reader sleeps on") }
  }

  private mutating func writePending() {
    guard self.isEnqueued else { return }
    self.isEnqueued = false
    let pending = self.state.takePending(isWriting: self.isWriting)
    self.consumed += pending.consumed
    if self.isStreamLost {
      if pending.end != nil || pending.messages != nil { self.fail("something for a lost stream") }
      return
    }
    if self.isEndOut, pending.headers != nil || pending.messages != nil || pending.end != nil {
      self.fail("something behind the end")
    }
    if pending.headers != nil {
      if self.areHeadersOut { self.fail("headers twice") }
      self.areHeadersOut = true
    }
    if pending.areHeadersSent != self.areHeadersOut { self.fail("headers out or not?") }
    if var messages = pending.messages {
      if !self.areHeadersOut { self.fail("messages before headers") }
      if self.isWriting, pending.end == nil { self.fail("two writes under way") }
      while let part = messages.readPart(atMost: .max) { self.out += part.readableBytesView }
      self.isWriting = true
    }
    if pending.end != nil { self.isEndOut = true }
  }

  private mutating func written() {
    guard self.isWriting, !self.isEndOut, !self.isStreamLost else { return }
    self.isWriting = false
    self.state.written()
    // As `Call.becameWritable`: what waited follows at once.
    let wasEnqueued = self.isEnqueued
    self.isEnqueued = true
    self.writePending()
    if !wasEnqueued { self.isEnqueued = false }
    for waiter in self.state.takeWriteWaiters() { waiter() }
  }

  private mutating func loseStream() {
    guard !self.isStreamLost else { return }
    self.isStreamLost = true
    let (termination, _, wakeUps) = self.state.streamLost()
    if let known = self.termination, known != termination { self.fail("it ended otherwise") }
    self.termination = termination
    wakeUps.perform(termination)
  }

  // MARK: The servicer

  private mutating func take() {
    let (next, mustEnqueue) = self.state.next()
    self.enqueue(mustEnqueue)
    switch next {
    case .message(let message):
      self.taken += 1
      self.bytesTaken += message.payload.readableBytes + MessageFramer.prefixLength
      if message.payload.readableBytesView.first != UInt8(truncatingIfNeeded: self.taken) {
        self.fail("not the next message")
      }
    case .end:
      if !self.isInboundEnded { self.fail("an end that has not come") }
      if self.taken != self.received, !self.isStreamLost { self.fail("messages are lost") }
    case .pending:
      if self.taken != self.received || self.termination != nil { self.fail("there was something") }
    case .terminated(let termination):
      if termination != self.termination { self.fail("it ended otherwise") }
    }
  }

  private mutating func waitUntilReadable() {
    let counter = Counter()
    if self.state.waitUntilReadable({ counter.calls += 1 }) {
      if self.taken < self.received, self.termination == nil {
        self.fail("waits for what is there")
      }
      self.readers.append(counter)
    }
  }

  private mutating func send() {
    let message = (0..<Int.random(in: 0..<40, using: &self.random)).map { _ in
      UInt8.random(in: .min ... .max, using: &self.random)
    }
    let (result, mustEnqueue) = message.withUnsafeBytes { self.state.send($0, compressed: nil) }
    self.enqueue(mustEnqueue)
    if (result == .terminated) != (self.termination != nil) { self.fail("\(result) of a message") }
    if result != .terminated { self.sent += Self.framed(message) }
  }

  private static func framed(_ message: [UInt8]) -> [UInt8] {
    [0, 0, 0, 0, UInt8(message.count)] + message
  }

  private mutating func waitUntilWritable() {
    let counter = Counter()
    if self.state.waitUntilWritable({ counter.calls += 1 }) { self.writers.append(counter) }
  }

  private mutating func sendMetadata() {
    let isDecided = self.state.areHeadersDecided
    let (isPossible, mustEnqueue) = self.state.sendInitialMetadata(Metadata())
    self.enqueue(mustEnqueue)
    if isPossible == isDecided { self.fail("metadata could be given, or could not") }
    if isPossible, self.termination == nil { self.isMetadataGiven = true }
  }

  private mutating func registerCallback() {
    let counter = Counter()
    let isRegistered = self.state.onTermination { _ in counter.calls += 1 }
    if isRegistered != (self.termination == nil) { self.fail("a callback after the end") }
    if isRegistered { self.callbacks.append(counter) }
  }

  private mutating func handlerReturned() {
    if self.state.handlerReturned().releasesAdmission { self.releases += 1 }
  }

  private mutating func end() {
    let ends: [Call.Termination] = [.answered, .answered, .deadlineExceeded, .cancelledByServer]
    let termination = ends.randomElement(using: &self.random) ?? .answered
    let last =
      Bool.random(using: &self.random) && termination == .answered ? [7, 8, 9] as [UInt8] : nil
    let end = CallState.End(status: Status(code: .ok), metadata: nil)
    let effects = self.state.end(end, as: termination) { state in
      last?.withUnsafeBytes { state.append($0, compressed: nil) }
    }
    guard let (wakeUps, mustEnqueue) = effects else {
      if self.termination == nil { self.fail("it can't be ended") }
      return
    }
    if self.termination != nil { self.fail("it ends twice") }
    self.termination = termination
    if let last { self.sent += Self.framed(last) }
    self.enqueue(mustEnqueue)
    wakeUps.perform(termination)
  }

  // MARK: What must hold

  private mutating func check() {
    if self.termination != self.state.termination { self.fail("ended or not?") }
    if self.termination != nil {
      for counter in self.readers + self.writers + self.callbacks where counter.calls != 1 {
        self.fail("called \(counter.calls) times by the end")
      }
    }
    for counter in self.readers + self.writers + self.callbacks where counter.calls > 1 {
      self.fail("called twice")
    }
    if !self.sent.starts(with: self.out) { self.fail("other bytes go out") }
    if self.releases > 1 { self.fail("released twice") }
    guard !self.isStreamLost, !self.isEndOut, !self.isEnqueued else { return }
    if self.termination != nil { self.fail("nobody sends the end") }
    if self.isMetadataGiven, !self.areHeadersOut { self.fail("nobody sends the metadata") }
    if !self.isWriting, self.out.count < self.sent.count { self.fail("nobody sends the messages") }
  }

  mutating func settle() {
    for _ in 0..<10 {
      self.writePending()
      self.written()
      self.check()
    }
    if !self.isStreamLost, self.termination == nil, self.writers.contains(where: { $0.calls == 0 })
    {
      self.fail("a writer sleeps on, though all has left")
    }
    if self.termination == nil { self.end() }
    self.writePending()
    self.check()
    if !self.isStreamLost {
      if !self.isEndOut { self.fail("the end never goes out") }
      if self.termination == .answered, self.out != self.sent { self.fail("messages are lost") }
    }
    self.handlerReturned()
    self.handlerReturned()
    if self.releases != 1 { self.fail("released \(self.releases) times") }
    if self.consumed > self.bytesTaken { self.fail("more is consumed than was taken") }
  }
}
