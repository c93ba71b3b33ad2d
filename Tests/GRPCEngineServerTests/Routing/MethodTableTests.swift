import GRPCEngineServer
import GRPCEngineTesting
import Testing

struct MethodTableTests {
  @Test("A path has the handler that was registered for it last")
  func registration() {
    let table = MethodTable()
    let (first, second) = (TestHandler.echo(), TestHandler.sum())
    table.register(first, for: "/a.B/C")
    #expect(table.method(for: "/a.B/C")?.handler === first)
    table.register(second, for: "/a.B/C")
    #expect(table.method(for: "/a.B/C")?.handler === second)
  }

  @Test(
    "Paths are compared as they are, byte for byte",
    arguments: ["/a.B/D", "/a.b/k", "a.B/K", "/a.B/K/", "", "/a.B/\u{212A}"]
  )
  func unknown(path: String) {
    let table = MethodTable()
    table.register(TestHandler.echo(), for: "/a.B/K")
    #expect(table.method(for: path)?.handler == nil)
  }

  @Test("A fallback serves what nobody else does, until it is taken away")
  func fallback() {
    let table = MethodTable()
    let (known, fallback) = (TestHandler.echo(), TestHandler.sum())
    table.register(known, for: "/known")
    table.setFallback(fallback)
    #expect(table.method(for: "/known")?.handler === known)
    #expect(table.method(for: "/other")?.handler === fallback)
    table.setFallback(nil)
    #expect(table.method(for: "/other")?.handler == nil)
  }

  @Test("A service's limits are those of all its paths", arguments: ["K", "\u{301}K", "\u{212A}"])
  func limitsOfTheFallback(method: String) throws {
    let table = MethodTable()
    table.setLimits(MethodLimits(), for: "/a.B/*")
    table.setFallback(TestHandler.echo())
    let found = try #require(table.method(for: "/a.B/" + method))
    #expect(found.path == "/a.B/*")
  }
}
