/// An address that `add_insecure_port` and `add_secure_port` take, in gRPC's naming
/// (https://github.com/grpc/grpc/blob/master/doc/naming.md).
package enum ListenAddress: Hashable, Sendable {
  /// Host and port; an empty host, `*`, `[::]` and `0.0.0.0` mean every address.
  case host(String, port: Int)
  case unix(path: String)
  case abstractUnix(name: String)
  /// A socket that listens already, as `fd:` and its number, which gRPC does not have: from
  /// systemd's socket activation, or from a parent process.
  case descriptor(Int32)

  package struct Malformed: Error { package let message: String }

  package init(_ text: String) throws(Malformed) {
    if text.hasPrefix("unix-abstract:") {
      let name = text.dropFirst("unix-abstract:".count)
      guard !name.isEmpty else { throw Malformed(message: "'\(text)' names no socket") }
      self = .abstractUnix(name: String(name))
      return
    }
    if text.hasPrefix("unix:") {
      var path = text.dropFirst("unix:".count)
      if path.hasPrefix("//") { path = path.dropFirst(2) }
      guard !path.isEmpty else { throw Malformed(message: "'\(text)' names no socket") }
      guard !path.utf8.contains(0) else {
        throw Malformed(message: "'\(text)' has a null character, which no path can have")
      }
      self = .unix(path: String(path))
      return
    }
    if text.hasPrefix("fd:") {
      guard let number = Int32(text.dropFirst("fd:".count)), number >= 0 else {
        throw Malformed(message: "'\(text)' names no file descriptor; write it as fd:3")
      }
      self = .descriptor(number)
      return
    }
    var rest = text[...]
    for scheme in ["ipv4:", "ipv6:", "dns:///", "dns:"] where rest.hasPrefix(scheme) {
      rest = rest.dropFirst(scheme.count)
      break
    }
    guard let colon = rest.lastIndex(of: ":"), let port = Int(rest[rest.index(after: colon)...]),
      (0...65_535).contains(port)
    else {
      throw Malformed(message: "'\(text)' has no port from 0 to 65535; write it as host:port")
    }
    var host = rest[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") {
      host = host.dropFirst().dropLast()
    } else if host.contains(":") {
      throw Malformed(message: "'\(text)' needs brackets around its IPv6 address: [::1]:50051")
    }
    self = .host(String(host), port: port)
  }

  /// Whether the host stands for every address of the machine.
  package static func isWildcard(_ host: String) -> Bool {
    host.isEmpty || host == "*" || host == "::" || host == "0.0.0.0"
  }
}
