import GRPCEngineTransport
import NIOCore
import Testing

struct DescriptorReserveTests {
  @Test(
    "The reserve is a twentieth, 16 at least, and never more than half",
    arguments: [(8, 4), (20, 10), (32, 16), (64, 16), (320, 16), (340, 17), (1024, 51)]
  )
  func size(limit: Int, size: Int) {
    #expect(DescriptorReserve(limit: limit).size == size)
  }

  @Test("It is reached with the first descriptor that is its own")
  func edges() {
    let reserve = DescriptorReserve(limit: 1024)
    #expect(!reserve.isReached(lowestFree: 1024 - 52))
    #expect(reserve.isReached(lowestFree: 1024 - 51))
    #expect(reserve.isReached(lowestFree: nil))
  }

  @Test("Operators may have half of it")
  func operators() {
    let reserve = DescriptorReserve(limit: 1024)
    #expect(!reserve.isReached(lowestFree: 1024 - 26, isForOperators: true))
    #expect(reserve.isReached(lowestFree: 1024 - 25, isForOperators: true))
    #expect(reserve.isReached(lowestFree: nil, isForOperators: true))
  }

  @Test("A process without a limit has no reserve to reach")
  func unlimited() {
    #expect(!DescriptorReserve(limit: .max).isReached(lowestFree: 1_000_000))
  }

  @Test("One notice a second passes")
  func notices() {
    var limit = NoticeLimit()
    let start = NIODeadline.uptimeNanoseconds(1)
    let admitted = [0, 0, 999, 1000, 1999].map { limit.admit(at: start + .milliseconds($0)) }
    #expect(admitted == [true, false, false, true, false])
  }
}
