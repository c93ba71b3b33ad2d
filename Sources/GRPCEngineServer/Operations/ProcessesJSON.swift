internal import GRPCEngineStatistics

/// The processes of a server and the calls that they run, as JSON: what `manage.py grpctop` reads.
///
/// `{"processes": [{"pid", "ready", "started", "connections", "calls", "queued", "busy", "idle",
/// "held", "loop_calls", "calls_ended", "resident_bytes", "cpu_seconds", "silent"}],
/// "calls": [{"pid", "method", "peer", "stage", "age", "deadline", "thread"}]}`. Times are in
/// seconds: `started` since 1970, `silent` since the process last said something, `age` since the
/// call's headers, `deadline` until its time is out (`null`: never).
struct ProcessesJSON {
  private(set) var text = "{\"processes\":["

  init(_ board: StatisticsBoard) {
    let live = board.slots.filter(\.isLive)
    self.text += live.map(Self.process).joined(separator: ",")
    self.text += "],\"calls\":["
    self.text += live.flatMap(Self.calls).joined(separator: ",")
    self.text += "]}"
  }

  private static func process(_ slot: StatisticsSlot) -> String {
    let pid = slot[.process].value
    let figures = ProcessFigures(process: pid)
    let now = ServerStatistics.now
    let heartbeat = slot[.heartbeat].value
    let silent = now > heartbeat ? now - heartbeat : 0
    let members: [(String, String)] = [
      ("pid", "\(pid)"),
      ("ready", slot[.ready].value == 0 ? "false" : "true"),
      ("started", "\(Double(slot[.started].value) / 1000)"),
      ("connections", "\(slot[.connections].value)"),
      ("calls", "\(slot[.calls].value)"),
      ("queued", "\(slot[.queued].value)"),
      ("busy", "\(slot[.busyThreads].value)"),
      ("idle", "\(slot[.idleThreads].value)"),
      ("held", "\(slot[.heldThreads].value)"),
      ("loop_calls", "\(slot[.loopCalls].value)"),
      ("calls_ended", "\(slot[.callsEnded].value)"),
      ("resident_bytes", "\(figures.residentBytes)"),
      ("cpu_seconds", "\(figures.cpuSeconds)"),
      ("silent", "\(Double(silent) / 1000)"),
    ]
    return "{" + members.map { "\"\($0)\":\($1)" }.joined(separator: ",") + "}"
  }

  private static func calls(_ slot: StatisticsSlot) -> [String] {
    // The table changes a few times a second and in microseconds: the next look finds it whole.
    var calls: [RunningCall]?
    for _ in 0..<100 where calls == nil { calls = slot.runningCalls }
    let now = ServerStatistics.nanoseconds
    return (calls ?? []).map { call in
      let age = now > call.accepted ? Double(now - call.accepted) * 1e-9 : 0
      let left = (Double(call.deadline) - Double(now)) * 1e-9
      let deadline = call.deadline == 0 ? "null" : "\(left)"
      return "{\"pid\":\(slot[.process].value),\"method\":\(Self.quote(call.method)),"
        + "\"peer\":\(Self.quote(call.peer)),\"stage\":\"\(call.stage == .running ? "running" : "waiting")\","
        + "\"age\":\(age),\"deadline\":\(deadline),\"thread\":\(call.thread)}"
    }
  }

  static func quote(_ text: String) -> String {
    var quoted = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": quoted += "\\\""
      case "\\": quoted += "\\\\"
      case _ where scalar.value < 0x20 || scalar.value == 0x7f:
        let digits = String(scalar.value, radix: 16)
        quoted += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: quoted.unicodeScalars.append(scalar)
      }
    }
    return quoted + "\""
  }
}
