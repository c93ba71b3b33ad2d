import GRPCEngineTesting
import GRPCEngineTransport
import Testing

struct ReceiveWindowTests {
  /// What a stream does when something came or was taken, for a connection that lets a window open as far
  /// as `openness`.
  private func grant(
    _ window: inout ReceiveWindow,
    partial: Int,
    missing: Int,
    openness: Int = .max
  ) -> Int {
    let increment = window.increment(partial: partial, missing: missing)
    window.open(by: increment)
    let growth = window.growth(missing: missing, openness: openness)
    window.open(by: growth)
    return increment + growth
  }

  @Test("A window opens again by half its size at the least")
  func batches() {
    var window = ReceiveWindow(target: 1000)
    window.received(499)
    #expect(self.grant(&window, partial: 0, missing: 0) == 0)
    window.received(1)
    #expect(self.grant(&window, partial: 0, missing: 0) == 500)
    #expect(window.remaining == 1000)
  }

  @Test("What the application has not taken keeps the window shut")
  func heldBytes() {
    var window = ReceiveWindow(target: 1000)
    window.received(1000)
    window.delivered(1000)
    #expect(self.grant(&window, partial: 0, missing: 0) == 0)
    window.consumed(400)
    #expect(self.grant(&window, partial: 0, missing: 0) == 0)
    window.consumed(200)
    #expect(self.grant(&window, partial: 0, missing: 0) == 600)
    #expect(window.remaining + window.held == 1000)
  }

  @Test("Bytes of an unfinished message count as held")
  func partialBytes() {
    var window = ReceiveWindow(target: 1000)
    window.received(600)
    window.delivered(100)
    #expect(self.grant(&window, partial: 500, missing: 0) == 0)
    #expect(self.grant(&window, partial: 100, missing: 0) == 0, "400 is less than half")
    #expect(self.grant(&window, partial: 0, missing: 0) == 500)
  }

  @Test("A message larger than the window may be completed once nothing else is held")
  func largeMessage() {
    var window = ReceiveWindow(target: 1000)
    window.received(1000)
    #expect(self.grant(&window, partial: 995, missing: 4000) == 4000)
    #expect(window.remaining == 4000)
    window.received(4000)
    window.delivered(5000)
    #expect(self.grant(&window, partial: 0, missing: 0) == 0)
    window.consumed(5000)
    #expect(self.grant(&window, partial: 0, missing: 0) == 1000)
  }

  @Test("A message larger than the window waits while others are held")
  func largeMessageBehindOthers() {
    var window = ReceiveWindow(target: 1000)
    window.received(1000)
    window.delivered(300)
    #expect(self.grant(&window, partial: 695, missing: 4000) == 0)
    window.consumed(300)
    #expect(self.grant(&window, partial: 695, missing: 4000) == 4000)
  }

  @Test("The last few bytes of a message are granted though they are less than half a window")
  func smallRemainder() {
    var window = ReceiveWindow(target: 1000)
    window.received(1000)
    #expect(self.grant(&window, partial: 995, missing: 10) == 10)
    #expect(window.remaining == 10)
    #expect(self.grant(&window, partial: 995, missing: 10) == 0, "granted once")
  }

  @Test("Padding is given back")
  func padding() {
    var window = ReceiveWindow(target: 1000)
    for _ in 0..<100 {
      window.received(250)
      _ = self.grant(&window, partial: 0, missing: 0)
      #expect(window.remaining > 500)
    }
  }

  @Test("A window never exceeds what HTTP/2 can say")
  func largestWindow() {
    var window = ReceiveWindow(target: 65_535)
    window.received(65_535)
    let increment = self.grant(&window, partial: 65_530, missing: Int(UInt32.max))
    #expect(increment == Int(Int32.max))
    #expect(window.remaining == Int(Int32.max))
  }

  @Test("Whatever happens, a stream never holds more than its target and one message")
  func bound() {
    var random = SplitMix(seed: 7)
    for _ in 0..<200 {
      var window = ReceiveWindow(target: 1000)
      var partial = 0
      var missing = 0
      for _ in 0..<200 {
        // The peer sends what it may: pieces of messages of up to 5,000 bytes.
        if window.remaining > 0 {
          if missing == 0 { missing = 1 + Int(random.next() % 5000) }
          let piece = min(window.remaining, missing, 1 + Int(random.next() % 1000))
          window.received(piece)
          partial += piece
          missing -= piece
          if missing == 0 {
            window.delivered(partial)
            partial = 0
          }
        }
        if random.next() % 3 == 0, window.held > 0 {
          window.consumed(1 + Int(random.next() % UInt64(window.held)))
        }
        _ = self.grant(&window, partial: partial, missing: missing)
        #expect(window.held + partial + window.remaining <= 1000 + 5000)
        #expect(window.held >= 0)
      }
      // A peer whose messages are taken is never stuck.
      window.consumed(window.held)
      _ = self.grant(&window, partial: partial, missing: missing)
      #expect(window.remaining > 0)
    }
  }
}
