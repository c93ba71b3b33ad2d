import GRPCEngineWire
import Testing

struct MethodPathTests {
  @Test(
    "A path names a service and a method",
    arguments: [
      ("/pkg.Service/Method", "pkg.Service", "Method"),
      ("/S/M", "S", "M"),
      ("/a/b.C/D", "a/b.C", "D"),
      ("//a/M", "/a", "M"),
      ("/Dienst/Größe", "Dienst", "Größe"),
    ]
  )
  func paths(path: String, service: String, method: String) throws {
    let parsed = try #require(MethodPath(path))
    #expect(parsed.service == service)
    #expect(parsed.method == method)
  }

  @Test(
    "Anything else is no method's path",
    arguments: ["", "/", "//", "S", "S/M", "/S", "/S/", "//M", "/S/M/", " /S/M", "*"]
  )
  func refuses(path: String) {
    #expect(MethodPath(path) == nil)
  }
}
