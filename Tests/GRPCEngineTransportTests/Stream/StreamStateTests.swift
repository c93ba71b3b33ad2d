import GRPCEngineTransport
import Testing

struct StreamStateTests {
  /// What a peer sees of a stream whose server does all in random order, and the laws of it.
  private struct Model {
    var state: StreamState
    var isInboundEnded: Bool
    var frames: [Frame] = []
    var isClosed = false
    var wasAllWritten = false
    var isPolite = true

    enum Frame: Hashable { case headers, messages, trailers, trailersOnly, reset }

    init(isInboundEnded: Bool) {
      self.state = StreamState(isInboundEnded: isInboundEnded)
      self.isInboundEnded = isInboundEnded
    }

    var isEnded: Bool {
      self.frames.contains(.trailers) || self.frames.contains(.trailersOnly)
    }

    mutating func step(_ event: Int) {
      switch event {
      case 0: if self.state.sendHeaders() { self.frames.append(.headers) }
      case 1, 2: if self.state.sendMessages() { self.frames.append(.messages) }
      case 3:
        switch self.state.sendEnd() {
        case .trailers: self.frames.append(.trailers)
        case .trailersOnly: self.frames.append(.trailersOnly)
        case nil: break
        }
      case 4, 5:
        if self.isEnded, event == 5 {
          self.state.endLeft()
          self.wasAllWritten = self.wasAllWritten || !self.frames.contains(.reset)
        }
        if self.state.written() == .reset {
          self.isPolite = self.wasAllWritten && !self.isInboundEnded
          self.frames.append(.reset)
        }
      case 6: if self.state.reset(dropsAnswer: false) { self.frames.append(.reset) }
      case 7: if self.state.reset(dropsAnswer: true) { self.frames.append(.reset) }
      case 8:
        self.state.receivedEnd()
        self.isInboundEnded = true
      case 9: self.state.ignore()
      default:
        _ = self.state.closed(isClean: false)
        self.isClosed = true
        self.isInboundEnded = true
      }
    }

    /// The law that the last step has broken.
    func brokenLaw(_ before: Self) -> String? {
      let new = self.frames.dropFirst(before.frames.count)
      if new.count > 1 { return "a frame for each step" }
      if before.isClosed || before.frames.contains(.reset), !new.isEmpty {
        return "nothing after the end of the stream"
      }
      if before.isEnded, new.contains(where: { $0 != .reset }) {
        return "nothing but a reset after the end of the answer"
      }
      switch new.first {
      case .headers, .trailersOnly:
        if !before.frames.isEmpty { return "headers come first" }
      case .messages, .trailers:
        if before.frames.first != .headers { return "headers come before messages and trailers" }
      case .reset, nil: break
      }
      if !self.isPolite { return "a peer is asked to stop once the answer is out, and it has not" }
      if self.isInboundEnded, self.state.inbound != .ended { return "what has ended stays ended" }
      if before.state.inbound != .open, self.state.inbound == .open {
        return "what is ignored is never read again"
      }
      if self.state.isWriting, self.isEnded || self.frames.contains(.reset) {
        return "messages are not on their way behind an end"
      }
      return nil
    }
  }

  @Test func anyOrderOfEventsSendsWhatHTTPAllows() {
    var generator = SystemRandomNumberGenerator()
    for _ in 0..<50_000 {
      var model = Model(isInboundEnded: Bool.random(using: &generator))
      for _ in 0..<Int.random(in: 1...16, using: &generator) {
        let before = model
        model.step(Int.random(in: 0...11, using: &generator))
        if let law = model.brokenLaw(before) { Issue.record("\(law): \(model.frames)") }
      }
    }
  }

  @Test func whoClosesIsTold() {
    var answered = StreamState(isInboundEnded: true)
    #expect(answered.sendHeaders() == true)
    #expect(answered.sendMessages() == true)
    #expect(answered.sendEnd() == .trailers)
    answered.endLeft()
    #expect(answered.closed(isClean: false) == .answered)

    var clean = StreamState(isInboundEnded: true)
    #expect(clean.sendEnd() == .trailersOnly)
    #expect(clean.closed(isClean: true) == .answered)

    var cut = StreamState(isInboundEnded: false)
    #expect(cut.sendEnd() == .trailersOnly)
    #expect(cut.closed(isClean: false) == .resetByPeer)

    var reset = StreamState(isInboundEnded: false)
    #expect(reset.reset(dropsAnswer: false) == true)
    #expect(reset.closed(isClean: false) == .resetByServer)
  }

  @Test func earlyAnswerAsksThePeerToStopOnceItIsOut() {
    var state = StreamState(isInboundEnded: false)
    #expect(state.sendEnd() == .trailersOnly)
    #expect(state.written() == .finishWriting)
    state.endLeft()
    #expect(state.written() == .reset)
    #expect(state.written() == .nothing)
    #expect(state.closed(isClean: false) == .answered)
  }

  @Test func endOfAnIgnoredRequestCounts() {
    var state = StreamState(isInboundEnded: false)
    state.ignore()
    state.receivedEnd()
    #expect(state.inbound == .ended)
    #expect(state.sendEnd() == .trailersOnly)
    state.endLeft()
    #expect(state.written() == .nothing)
  }

  @Test func completeAnswerIsResetOnlyToDropIt() {
    var state = StreamState(isInboundEnded: true)
    #expect(state.sendEnd() == .trailersOnly)
    #expect(state.reset(dropsAnswer: false) == false)
    #expect(state.reset(dropsAnswer: true) == true)
    #expect(state.reset(dropsAnswer: true) == false)
  }
}
