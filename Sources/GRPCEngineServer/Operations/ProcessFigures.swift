internal import Glibc

/// What the kernel knows of a process; zeros when it has ended.
struct ProcessFigures {
  private(set) var residentBytes: UInt64 = 0
  private(set) var cpuSeconds: Double = 0

  /// Reads two files of /proc, which are memory: this does not block.
  init(process: UInt64) {
    let memory = Self.fields("/proc/\(process)/statm")
    if memory.count > 1, let pages = UInt64(memory[1]) {
      self.residentBytes = pages * UInt64(max(0, sysconf(CInt(_SC_PAGESIZE))))
    }
    // "PID (NAME) STATE …": the name may hold spaces. From the state on, user time is the 12th field
    // and system time the 13th.
    let status = Self.read("/proc/\(process)/stat")
    guard let end = status.lastIndex(of: ")") else { return }
    let fields = status[end...].split(separator: " ")
    if fields.count > 13, let user = Double(fields[12]), let system = Double(fields[13]) {
      self.cpuSeconds = (user + system) / Double(max(1, sysconf(CInt(_SC_CLK_TCK))))
    }
  }

  private static func fields(_ path: String) -> [Substring] {
    Self.read(path).split(separator: " ")
  }

  private static func read(_ path: String) -> String {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return "" }
    defer { close(descriptor) }
    return withUnsafeTemporaryAllocation(byteCount: 1024, alignment: 1) { buffer in
      let count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
      return String(decoding: buffer[..<max(0, count)], as: UTF8.self)
    }
  }
}
