import GRPCEngineStatistics
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import Synchronization
import Testing

@testable import GRPCEngineServer

struct CallLogTests {
  private final class WakeUps: Sendable {
    private let number = Atomic(0)
    var count: Int { self.number.load(ordering: .relaxed) }
    func add() { self.number.wrappingAdd(1, ordering: .relaxed) }
  }

  private static func call(
    _ path: String = "/a.B/C",
    code: StatusCode = .ok,
    duration: TimeAmount = .milliseconds(1)
  ) -> CallSummary {
    CallSummary(
      path: path,
      peer: Peer(address: nil, localAddress: nil, isSecure: false, certificates: []),
      code: code,
      accepted: .now(),
      duration: duration,
      queueWait: nil,
      traffic: CallSummary.Traffic(),
      queries: CallSummary.Queries()
    )
  }

  private static func log(
    capacity: Int = 10,
    statistics: ServerStatistics = ServerStatistics(),
    wakeUps: WakeUps = WakeUps(),
    _ change: (inout CallLog.Filter) -> Void = { _ in }
  ) -> CallLog {
    var filter = CallLog.Filter()
    change(&filter)
    return CallLog(filter: filter, capacity: capacity, statistics: statistics) { wakeUps.add() }
  }

  @Test("Calls are taken in the order in which they ended, some at a time")
  func order() {
    let log = Self.log()
    for index in 0..<5 { log.record(Self.call("/a.B/\(index)")) }
    #expect(log.take(3).calls.map(\.path) == ["/a.B/0", "/a.B/1", "/a.B/2"])
    #expect(log.take(3).calls.map(\.path) == ["/a.B/3", "/a.B/4"])
    #expect(log.take(3).calls.isEmpty)
  }

  @Test("What does not fit is dropped and counted")
  func drops() {
    let statistics = ServerStatistics()
    let log = Self.log(capacity: 4, statistics: statistics)
    for index in 0..<7 { log.record(Self.call("/a.B/\(index)")) }
    #expect(statistics.slot[.logRecordsDropped].value == 3)
    let batch = log.take(10)
    #expect(batch.calls.map(\.path) == ["/a.B/0", "/a.B/1", "/a.B/2", "/a.B/3"])
    #expect(batch.dropped == 3)
    log.record(Self.call())
    let next = log.take(10)
    #expect(next.calls.count == 1 && next.dropped == 0)
  }

  @Test("The reader is woken for the first call, for the half, and for the end")
  func wakeUps() {
    let wakeUps = WakeUps()
    let log = Self.log(capacity: 10, wakeUps: wakeUps)
    log.record(Self.call())
    #expect(wakeUps.count == 1)
    for _ in 0..<3 { log.record(Self.call()) }
    #expect(wakeUps.count == 1)
    log.record(Self.call())
    #expect(wakeUps.count == 2)
    for _ in 0..<10 { log.record(Self.call()) }
    #expect(wakeUps.count == 2)
    log.close()
    #expect(wakeUps.count == 3)
  }

  @Test("A log that is closed gives what it has, and takes no more")
  func close() {
    let log = Self.log()
    log.record(Self.call())
    log.close()
    log.record(Self.call())
    #expect(log.content == (1, true))
    let batch = log.take(10)
    #expect(batch.calls.count == 1 && batch.dropped == 1)
  }

  @Test("Slow calls only, and those that the server is to blame for")
  func slow() {
    let log = Self.log { $0.slow = .seconds(1) }
    log.record(Self.call("fast"))
    log.record(Self.call("slow", duration: .seconds(1)))
    log.record(Self.call("fault", code: .internalError))
    log.record(Self.call("refused", code: .resourceExhausted))
    #expect(log.take(10).calls.map(\.path) == ["slow", "fault"])
  }

  @Test(
    "A part of the calls, of the statuses that are nobody's fault",
    arguments: [0, 0.1, 0.5, 1]
  )
  func sample(part: Double) {
    let log = Self.log(capacity: 20_000) { $0.sample = part }
    for _ in 0..<10_000 { log.record(Self.call()) }
    let count = Double(log.take(20_000).calls.count)
    #expect(abs(count - part * 10_000) <= (part == 0 || part == 1 ? 0 : 300))
    log.record(Self.call(code: .unavailable))
    #expect(log.take(10).calls.count == 1)
  }

  @Test("The statuses that are the server's fault, by OpenTelemetry's conventions")
  func faults() {
    let faults = (0...16).filter { StatusCode(rawValue: $0)?.isFaultOfServer == true }
    #expect(faults == [2, 4, 12, 13, 14, 15])
  }

  @Test("Threads that record at once lose nothing but what does not fit")
  func threads() async {
    let statistics = ServerStatistics()
    let log = Self.log(capacity: 1000, statistics: statistics)
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<4 {
        group.addTask { for _ in 0..<500 { log.record(Self.call()) } }
      }
    }
    let batch = log.take(5000)
    #expect(batch.calls.count == 1000 && batch.dropped == 1000)
    #expect(statistics.slot[.logRecordsDropped].value == 1000)
  }
}
