internal import Glibc

/// Runs `body` with the path of a file that is not there, in a folder that is removed afterwards.
package func withTemporaryPath(_ body: (String) throws -> Void) throws {
  // Short, since a socket's path has 107 bytes at most.
  var template = Array("/tmp/grpc-engine-XXXXXX".utf8CString)
  guard mkdtemp(&template) != nil else { throw TestTimeout(what: "a temporary folder") }
  let folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  let path = folder + "/a"
  defer {
    unlink(path)
    rmdir(folder)
  }
  try body(path)
}
