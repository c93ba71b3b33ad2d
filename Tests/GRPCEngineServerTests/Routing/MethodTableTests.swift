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

  @Test("Paths are compared as they are", arguments: ["/a.B/D", "/a.b/c", "a.B/C", "/a.B/C/", ""])
  func unknown(path: String) {
    let table = MethodTable()
    table.register(TestHandler.echo(), for: "/a.B/C")
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
}
