import Testing
import WireFuzz

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

struct FuzzCaseTests {
  static let folder =
    #filePath.split(separator: "/").dropLast(3).map { "/\($0)" }.joined()
    + "/Fuzzing/Cases/wire"

  @Test("What the fuzzer once found stays mended", arguments: try caseNames())
  func keptCase(name: String) throws {
    #expect(WireProperty.firstViolation(by: try contents(of: "\(Self.folder)/\(name)")) == nil)
  }

  @Test("Every property has kept cases")
  func coverage() throws {
    let chosen = try Self.caseNames().compactMap { name in
      try contents(of: "\(Self.folder)/\(name)").first.map { Int($0) % WireProperty.all.count }
    }
    #expect(Set(chosen) == Set(WireProperty.all.indices))
  }

  static func caseNames() throws -> [String] {
    let directory = try #require(opendir(folder), "\(folder) is missing")
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if !name.hasPrefix(".") { names.append(name) }
    }
    return names.sorted()
  }

  private func contents(of path: String) throws -> [UInt8] {
    let file = try #require(fopen(path, "rb"), "\(path) cannot be read")
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65_536)
    while true {
      let count = fread(&chunk, 1, chunk.count, file)
      if count == 0 { return bytes }
      bytes += chunk[..<count]
    }
  }
}
