import GRPCEngineTesting
import GRPCEngineWire
import NIOCore
import Testing

@testable import GRPCEngineServer

/// What the server itself answers.
private final class OwnMethod: MethodHandler {
  let startsOnFirstMessage = false
  let isLimited = false
  func start(_ call: Call) {}
}

struct MethodLimitsTests {
  private static func limits(timeout: TimeAmount?, maximum: TimeAmount?) -> MethodLimits {
    var limits = MethodLimits()
    limits.timeout = timeout
    limits.maximumTimeout = maximum
    return limits
  }

  @Test("The method's time is for peers that ask for none, its greatest time for all")
  func timeout() {
    let none = Self.limits(timeout: nil, maximum: nil)
    #expect(none.timeout(asked: nil) == nil && none.timeout(asked: .hours(9)) == .hours(9))
    let usual = Self.limits(timeout: .seconds(5), maximum: nil)
    #expect(usual.timeout(asked: nil) == .seconds(5))
    #expect(usual.timeout(asked: .seconds(9)) == .seconds(9))
    let greatest = Self.limits(timeout: .seconds(5), maximum: .seconds(3))
    #expect(greatest.timeout(asked: nil) == .seconds(3))
    #expect(greatest.timeout(asked: .seconds(9)) == .seconds(3))
    #expect(greatest.timeout(asked: .seconds(1)) == .seconds(1))
  }

  @Test("A refusal's pushback is spread around what was set")
  func pushback() throws {
    var limits = MethodLimits()
    #expect(limits.pushback == nil)
    limits.retryAfter = .seconds(1)
    var values: Set<Int> = []
    for _ in 0..<100 {
      let entry = try #require(limits.pushback?.entries.first)
      guard entry.key == "grpc-retry-pushback-ms", case .ascii(let text) = entry.value else {
        Issue.record("\(entry)")
        return
      }
      values.insert(try #require(Int(text)))
    }
    #expect(values.allSatisfy { (800...1200).contains($0) } && values.count > 10)
  }

  @Test("Calls count on when their path is registered anew, unless its limits have changed")
  func registeredAnew() throws {
    let table = MethodTable()
    var limits = MethodLimits()
    limits.concurrency = 1
    table.setLimits(limits, for: "*")
    let gate = {
      table.register(TestHandler.echo(), for: "/a.B/C")
      table.setFallback(TestHandler.sum())
      return (table.method(for: "/a.B/C")?.gate, table.method(for: "/other")?.gate)
    }
    let (before, fallback) = gate()
    try #require(before != nil && fallback != nil)
    let again = gate()
    #expect(again.0 === before && again.1 === fallback)
    limits.concurrency = 2
    table.setLimits(limits, for: "*")
    #expect(gate().0 !== before)
    #expect(gate().1 !== fallback)
  }

  @Test("Of a path's patterns the most precise one counts")
  func patterns() {
    let table = MethodTable()
    for (pattern, concurrency) in [("*", 1), ("/a.B/*", 2), ("/a.B/C", 3)] {
      var limits = MethodLimits()
      limits.concurrency = concurrency
      table.setLimits(limits, for: pattern)
    }
    table.register(TestHandler.echo(), for: "/a.B/C")
    table.register(TestHandler.echo(), for: "/a.B/D")
    table.register(TestHandler.echo(), for: "/x.Y/Z")
    table.register(OwnMethod(), for: "/own/Method")
    func concurrency(_ path: String) -> Int? { table.method(for: path)?.limits?.concurrency }
    #expect(concurrency("/a.B/C") == 3 && concurrency("/a.B/D") == 2)
    #expect(concurrency("/x.Y/Z") == 1)
    #expect(table.method(for: "/own/Method") != nil && concurrency("/own/Method") == nil)
    #expect(table.method(for: "/unknown") == nil)
    table.setFallback(TestHandler.echo())
    #expect(concurrency("/a.B/other") == 2 && concurrency("/unknown") == 1)
    #expect(concurrency("no slash") == 1)
  }
}
