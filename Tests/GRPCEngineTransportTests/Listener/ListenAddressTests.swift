import GRPCEngineTransport
import Testing

struct ListenAddressTests {
  @Test(
    "gRPC's names of addresses are read",
    arguments: [
      ("localhost:50051", ListenAddress.host("localhost", port: 50_051)),
      ("127.0.0.1:0", .host("127.0.0.1", port: 0)),
      ("0.0.0.0:1", .host("0.0.0.0", port: 1)),
      ("[::]:50051", .host("::", port: 50_051)),
      ("[::1]:65535", .host("::1", port: 65_535)),
      (":80", .host("", port: 80)),
      ("*:80", .host("*", port: 80)),
      ("ipv4:127.0.0.1:80", .host("127.0.0.1", port: 80)),
      ("ipv6:[::1]:80", .host("::1", port: 80)),
      ("dns:example.org:80", .host("example.org", port: 80)),
      ("dns:///example.org:80", .host("example.org", port: 80)),
      ("unix:relative.sock", .unix(path: "relative.sock")),
      ("unix:/run/a.sock", .unix(path: "/run/a.sock")),
      ("unix:///run/a.sock", .unix(path: "/run/a.sock")),
      ("unix-abstract:name", .abstractUnix(name: "name")),
      ("fd:3", .descriptor(3)),
    ]
  )
  func addresses(text: String, expected: ListenAddress) throws {
    #expect(try ListenAddress(text) == expected)
  }

  @Test(
    "An address that says too little or too much is refused by its text",
    arguments: [
      "", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1", "::1:80",
      "unix:", "unix://", "unix-abstract:", "unix:a\0b", "[::1]",
    ]
  )
  func malformed(text: String) {
    let error = #expect(throws: ListenAddress.Malformed.self) { try ListenAddress(text) }
    #expect(error?.message.contains("'\(text)'") == true)
  }

  @Test("Hosts that stand for every address are known")
  func wildcards() {
    for host in ["", "*", "::", "0.0.0.0"] { #expect(ListenAddress.isWildcard(host)) }
    for host in ["localhost", "127.0.0.1", "::1"] { #expect(!ListenAddress.isWildcard(host)) }
  }
}
