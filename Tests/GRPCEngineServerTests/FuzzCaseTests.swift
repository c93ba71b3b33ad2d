import Glibc
import Testing
import TransportFuzz

struct FuzzCaseTests {
  private static let folder =
    #filePath.split(separator: "/").dropLast(3).map { "/\($0)" }.joined()
    + "/Fuzzing/Cases/transport"

  @Test("What the fuzzer once found stays mended", arguments: try caseNames())
  func keptCase(name: String) throws {
    #expect(TransportProperty.violation(by: try contents(of: "\(Self.folder)/\(name)")) == nil)
  }

  private static func caseNames() throws -> [String] {
    let directory = try #require(opendir(folder), "\(folder) is missing")
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if !name.hasPrefix(".") { names.append(name) }
    }
    try #require(!names.isEmpty)
    return names.sorted()
  }

  private func contents(of path: String) throws -> [UInt8] {
    let file = try #require(fopen(path, "rb"), "\(path) cannot be read")
    defer { fclose(file) }
    var chunk = [UInt8](repeating: 0, count: 65_536)
    // A script is a few hundred bytes.
    let count = fread(&chunk, 1, chunk.count, file)
    try #require(count < chunk.count)
    return Array(chunk[..<count])
  }
}
