import GRPCEngineHTTP2
import NIOCore
import Testing

struct FrameRateTests {
  @Test("As many frames may come in every second, and no more")
  func rate() {
    var rate = FrameRate(most: 3)
    let begin = NIODeadline.uptimeNanoseconds(7)
    for second in 0..<3 {
      let now = begin + .seconds(Int64(second))
      let exceeded = (0..<5).map { rate.isExceeded(at: now + .milliseconds(199 * $0)) }
      #expect(exceeded == [false, false, false, true, true])
    }
  }
}
