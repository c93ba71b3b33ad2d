import GRPCEngineStatistics
import Testing

@testable import GRPCEngineServer

struct PrometheusTextTests {
  private static func lines(_ statistics: ServerStatistics) -> [String] {
    PrometheusText(statistics.board).text.split(separator: "\n").map(String.init)
  }

  @Test("A path's parts are labels, and cannot break out of them")
  func escaping() {
    let statistics = ServerStatistics()
    statistics.method("/a\"B\\/C\nD", kind: 3).started.add(2)
    let expected =
      #"grpc_server_started_total{grpc_type="bidi_stream",grpc_service="a\"B\\",grpc_method="C\nD"} 2"#
    #expect(Self.lines(statistics).contains(expected))
  }

  @Test("Every line is a comment or a sample, and every sample's family is described before it")
  func format() throws {
    let statistics = ServerStatistics()
    statistics.begin()
    statistics.method("/a.B/C", kind: 0).durations.record(1_000_000)
    var families: Set<String> = []
    for line in Self.lines(statistics) {
      if line.hasPrefix("# TYPE ") {
        let words = line.split(separator: " ")
        #expect(families.insert(String(words[2])).inserted, "described twice: \(line)")
        continue
      }
      if line.hasPrefix("#") { continue }
      let name = try #require(line.split(whereSeparator: { $0 == "{" || $0 == " " }).first)
      let family = ["_bucket", "_sum", "_count"].reduce(String(name)) { name, suffix in
        name.hasSuffix(suffix) && families.contains(String(name.dropLast(suffix.count)))
          ? String(name.dropLast(suffix.count)) : name
      }
      #expect(families.contains(family), "\(line)")
      #expect(line.split(separator: " ").last.flatMap { Double($0) } != nil, "\(line)")
    }
  }

  @Test("A method's buckets are cumulative and end with all of its calls")
  func histogram() {
    let statistics = ServerStatistics()
    let durations = statistics.method("/a.B/C", kind: 0).durations
    for nanoseconds: UInt64 in [50_000, 100_000, 200_000, 61_000_000_000] {
      durations.record(nanoseconds)
    }
    let prefix = "grpc_server_handling_seconds_bucket{grpc_type=\"unary\",grpc_service=\"a.B\","
    let lines = Self.lines(statistics).filter { $0.hasPrefix(prefix) }
    #expect(lines.first?.hasSuffix("le=\"0.0001\"} 2") == true)
    #expect(lines.dropFirst().first?.hasSuffix("le=\"0.00025\"} 3") == true)
    #expect(lines.dropLast().last?.hasSuffix("le=\"60.0\"} 3") == true)
    #expect(lines.last?.hasSuffix("le=\"+Inf\"} 4") == true)
  }

  @Test("Gauges count for processes that live, counters for those that have ended too")
  func endedProcess() {
    let statistics = ServerStatistics()
    statistics.slot[.connections].set(3)
    statistics.slot[.connectionsAccepted].set(8)
    #expect(Self.lines(statistics).contains("grpc_server_connections 0"))
    #expect(Self.lines(statistics).contains("grpc_server_connections_total 8"))
    statistics.begin()
    #expect(Self.lines(statistics).contains("grpc_server_connections 3"))
  }
}

struct ProcessesJSONTests {
  @Test(
    "Text is quoted",
    arguments: [
      ("plain", #""plain""#), (#"a"b\c"#, #""a\"b\\c""#),
      ("\n\u{1}\u{7f}", #""\u000a\u0001\u007f""#),
      ("ä→😀", #""ä→😀""#),
    ]
  )
  func quoting(text: String, quoted: String) {
    #expect(ProcessesJSON.quote(text) == quoted)
  }
}
