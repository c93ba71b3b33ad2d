import Glibc
import Testing

@testable import GRPCEngineStatistics

struct StatisticsBoardTests {
  /// A file without a name.
  private static func makeFile() throws -> CInt {
    var name = Array("/tmp/statistics-board-XXXXXX".utf8CString)
    let descriptor = mkstemp(&name)
    unlink(name)
    try #require(descriptor >= 0)
    return descriptor
  }

  /// A board as the parent of worker processes makes it.
  private static func withFile(slots: Int, _ body: (CInt) throws -> Void) throws {
    let descriptor = try Self.makeFile()
    defer { close(descriptor) }
    _ = try StatisticsBoard(layingOut: descriptor, slotCount: slots)
    try body(descriptor)
  }

  @Test("What one process counts, another sees")
  func shared() throws {
    try Self.withFile(slots: 3) { descriptor in
      let (mine, theirs) = (
        try StatisticsBoard(descriptor: descriptor), try StatisticsBoard(descriptor: descriptor)
      )
      #expect(mine.slotCount == 3 && mine.isShared)
      mine.slot(2)[.callsEnded].add(5)
      mine[.workers].set(2)
      #expect(theirs.slot(2)[.callsEnded].value == 5)
      #expect(theirs.slot(1)[.callsEnded].value == 0)
      #expect(theirs[.workers].value == 2)
    }
  }

  @Test("Whatever number of slots is asked for, a board has one at least")
  func slotCount() throws {
    for (asked, made) in [(-1, 1), (0, 1), (1, 1), (64, 64)] {
      let descriptor = try Self.makeFile()
      defer { close(descriptor) }
      let board = try StatisticsBoard(layingOut: descriptor, slotCount: asked)
      #expect(board.slotCount == made)
      var status = stat()
      try #require(fstat(descriptor, &status) == 0)
      #expect(status.st_size == 4096 + made * 512 * 1024)
    }
    #expect(throws: StatisticsBoard.Malformed.self) {
      try StatisticsBoard(layingOut: -1, slotCount: 1)
    }
  }

  @Test("Restarts are counted by reason")
  func restarts() throws {
    try Self.withFile(slots: 1) { descriptor in
      let (mine, theirs) = (
        try StatisticsBoard(descriptor: descriptor), try StatisticsBoard(descriptor: descriptor)
      )
      for (times, reason) in StatisticsBoard.RestartReason.allCases.enumerated() {
        mine[restarts: reason].add(times)
      }
      #expect(
        StatisticsBoard.RestartReason.allCases.map { theirs[restarts: $0].value } == [
          0, 1, 2, 3, 4, 5, 6,
        ]
      )
      #expect(theirs[.watchedUntil].value == 0 && theirs[.workers].value == 0)
    }
  }

  @Test("Gauges go with their process, its counters stay, and what it had begun is UNAVAILABLE")
  func processEnded() throws {
    try Self.withFile(slots: 2) { descriptor in
      let board = try StatisticsBoard(descriptor: descriptor)
      let process = ServerStatistics(board: board, slot: 1)
      process.begin()
      for gauge in StatisticsSlot.Gauge.allCases { process.slot[gauge].set(7) }
      process.slot[.callsEnded].add(7)
      let method = process.method("/a.B/C", kind: 0)
      method.inFlight.add(3)
      method.started.add(9)
      method.ended(0).add(4)
      method.ended(5).add(2)
      let odd = process.method("/a.B/Odd", kind: 0)
      odd.ended(0).add(1)
      board.slot(1).processEnded()
      #expect(!process.slot.isLive)
      #expect(StatisticsSlot.Gauge.allCases.allSatisfy { process.slot[$0].value == 0 })
      #expect(method.inFlight.value == 0 && method.started.value == 9)
      #expect([0, 5, 14].map { method.ended($0).value } == [4, 2, 3])
      #expect(odd.ended(14).value == 0, "it died between two counts")
      #expect(process.slot[.callsEnded].value == 7 + 3)
      board.slot(1).processEnded()
      #expect(process.slot[.callsEnded].value == 7 + 3, "counted once")
    }
  }

  @Test("A file that is no board, or another version's, is refused")
  func malformed() throws {
    #expect(throws: StatisticsBoard.Malformed.self) { try StatisticsBoard(descriptor: -1) }
    let empty = try Self.makeFile()
    defer { close(empty) }
    #expect(throws: StatisticsBoard.Malformed.self) { try StatisticsBoard(descriptor: empty) }
    try Self.withFile(slots: 2) { descriptor in
      var wrong: UInt64 = 1
      for offset in [0, 8, 16] {
        var right: UInt64 = 0
        pread(descriptor, &right, 8, offset)
        pwrite(descriptor, &wrong, 8, offset)
        #expect(throws: StatisticsBoard.Malformed.self) {
          try StatisticsBoard(descriptor: descriptor)
        }
        pwrite(descriptor, &right, 8, offset)
      }
      _ = try StatisticsBoard(descriptor: descriptor)
    }
  }

  @Test("A process that takes a slot over goes on with its counters, and starts its gauges anew")
  func takeover() throws {
    try Self.withFile(slots: 1) { descriptor in
      let board = try StatisticsBoard(descriptor: descriptor)
      let first = ServerStatistics(board: board, slot: 0)
      first.begin()
      #expect(first.slot.isLive)
      let method = first.method("/a.B/C", kind: 2)
      method.started.add(7)
      method.inFlight.add(3)
      first.slot[.connections].add(4)
      first.slot[.callsEnded].add(6)
      let second = ServerStatistics(board: board, slot: 0)
      #expect(!second.slot.isLive)
      let again = second.method("/a.B/C", kind: 2)
      #expect(again.started.value == 7 && again.inFlight.value == 0 && again.kind == 2)
      #expect(second.slot[.connections].value == 0 && second.slot[.callsEnded].value == 6)
      #expect(Array(second.slot.methods).map(\.name) == ["other", "/a.B/C"])
    }
  }

  @Test("Methods beyond the records share one, and so do long names that begin alike")
  func manyMethods() {
    let statistics = ServerStatistics()
    defer { withExtendedLifetime(statistics) {} }
    for index in 0..<StatisticsSlot.maximumMethods + 10 {
      statistics.method("/a.B/\(index)", kind: 0).started.add()
    }
    let methods = Array(statistics.slot.methods)
    #expect(methods.count == StatisticsSlot.maximumMethods)
    #expect(methods.map(\.started.value).reduce(0, +) == UInt64(methods.count + 10))
    #expect(methods[0].name == "other" && methods[0].started.value == 11)
    let long = ServerStatistics()
    defer { withExtendedLifetime(long) {} }
    let name = "/" + String(repeating: "ä", count: 300)
    long.method(name + "1", kind: 0).started.add()
    long.method(name + "2", kind: 0).started.add()
    #expect(Array(long.slot.methods).map(\.started.value) == [0, 2])
  }

  @Test("The last record of a slot, and the last call, lie inside of it")
  func layout() {
    let board = StatisticsBoard()
    defer { withExtendedLifetime(board) {} }
    let slot = board.slot(0)
    let end = slot.base + StatisticsBoard.slotSize
    let lastCall = slot.call(at: StatisticsSlot.maximumCalls - 1)
    #expect(lastCall.baseAddress.map { $0 + lastCall.count <= end } == true)
    let lastMethod = slot.method(at: StatisticsSlot.maximumMethods - 1)
    #expect(
      slot.call(at: 0).baseAddress.map { lastMethod.base + StatisticsSlot.methodSize <= $0 } == true
    )
    // Each part of a record has its own cells.
    let method = slot.method(at: 5)
    method.take(String(repeating: "n", count: MethodStatistics.maximumNameLength), kind: 3)
    method.sent.record(.max / 2)
    method.received.record(5)
    method.durations.record(7)
    for code in 0..<MethodStatistics.codes { method.ended(code).add(code + 1) }
    #expect(method.kind == 3 && method.name.count == MethodStatistics.maximumNameLength)
    #expect(method.started.value == 0 && method.inFlight.value == 0)
    #expect((0..<MethodStatistics.codes).map { method.ended($0).value } == Array(1...17))
    #expect(method.durations.sum == 7 && method.received.sum == 5)
    #expect(!slot.method(at: 6).isTaken)
    slot[.queueWait as StatisticsSlot.ProcessHistogram].record(.max / 2)
    #expect(slot[.interpreterWait].buckets.allSatisfy { $0 == 0 })
  }
}

struct HistogramTests {
  @Test("A value is in the first bucket whose bound is not below it")
  func buckets() {
    let board = StatisticsBoard()
    defer { withExtendedLifetime(board) {} }
    let histogram = board.slot(0).method(at: 0).received
    for value: UInt64 in [0, 64, 65, 1 << 24, (1 << 24) + 1, .max / 4] { histogram.record(value) }
    var expected = [UInt64](repeating: 0, count: Histogram.sizes.count + 1)
    expected[0] = 2
    expected[1] = 1
    expected[Histogram.sizes.count - 1] = 1
    expected[Histogram.sizes.count] = 2
    #expect(histogram.buckets == expected)
    let sum: UInt64 = 64 + 65 + (1 << 24) + (1 << 24) + 1 + .max / 4
    #expect(histogram.sum == sum)
  }

  @Test("Bounds rise", arguments: [Histogram.durations, Histogram.sizes])
  func bounds(_ bounds: [UInt64]) {
    #expect(bounds == bounds.sorted() && Set(bounds).count == bounds.count)
  }
}

struct RunningCallTests {
  private static func call(_ index: UInt64, method: String = "/a.B/C") -> RunningCall {
    RunningCall(
      method: method,
      peer: "ipv4:127.0.0.1:\(index)",
      stage: index.isMultiple(of: 2) ? .waiting : .running,
      accepted: index,
      deadline: index + 1,
      thread: index + 2
    )
  }

  @Test("What was published is read, what does not fit is left out", arguments: [0, 1, 1000, 1200])
  func published(count: UInt64) {
    let board = StatisticsBoard()
    defer { withExtendedLifetime(board) {} }
    let slot = board.slot(0)
    let calls = (0..<count).map { Self.call($0) }
    slot.publish(calls)
    #expect(slot.runningCalls == Array(calls.prefix(StatisticsSlot.maximumCalls)))
    slot.publish([])
    #expect(slot.runningCalls == [])
  }

  @Test("Threads that publish at the same time leave a table that can be read")
  func overlapping() throws {
    let board = StatisticsBoard()
    defer { withExtendedLifetime(board) {} }
    let slot = board.slot(0)
    // Before two were kept apart, they left the version odd within a few thousand tries.
    let writers = (1...4).map { (count: UInt64) in
      Writer { for _ in 0..<5000 { slot.publish((0..<count).map { Self.call($0) }) } }
    }
    for writer in writers { writer.join() }
    let calls = try #require(slot.runningCalls)
    #expect(calls == (0..<UInt64(calls.count)).map { Self.call($0) })
    #expect(slot.publish([Self.call(7)]))
    #expect(slot.runningCalls == [Self.call(7)])
  }

  /// A thread.
  private final class Writer {
    private let thread: pthread_t

    init(_ body: @escaping @Sendable () -> Void) {
      var thread = pthread_t()
      let argument = Unmanaged.passRetained(Body(body))
      pthread_create(
        &thread,
        nil,
        { argument in
          guard let argument else { return nil }
          Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
          return nil
        },
        argument.toOpaque()
      )
      self.thread = thread
    }

    func join() { pthread_join(self.thread, nil) }

    private final class Body: Sendable {
      let run: @Sendable () -> Void
      init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
  }

  @Test("Names that are too long are cut")
  func long() {
    let board = StatisticsBoard()
    defer { withExtendedLifetime(board) {} }
    let slot = board.slot(0)
    slot.publish([Self.call(1, method: String(repeating: "x", count: 500)), Self.call(2)])
    #expect(slot.runningCalls?.map(\.method.count) == [160, 6])
    #expect(slot.runningCalls?.last == Self.call(2))
  }
}
