internal import Glibc

/// A listening socket without a thread behind it.
///
/// A port is bound when it is added and served from `start` on, as grpcio does it, and nothing
/// here starts a thread, so a process may bind and then fork.
package final class BoundSocket: Sendable {
  /// The descriptor; whoever takes it closes it.
  package let descriptor: CInt
  /// The port bound; 1 for a Unix domain socket, as grpcio gives it.
  package let port: Int
  package let isTCP: Bool
  /// The socket's file, to be removed with it.
  package let path: String?

  /// A system call failed.
  package struct Failure: Error {
    package let errno: CInt
    package let message: String
  }

  private init(descriptor: CInt, port: Int, isTCP: Bool, path: String?) {
    self.descriptor = descriptor
    self.port = port
    self.isTCP = isTCP
    self.path = path
  }

  /// - Throws: `Failure` with the errno of the call that failed: `EADDRINUSE`, `EACCES`, ….
  package static func bind(
    _ address: ListenAddress,
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> BoundSocket {
    switch address {
    case .unix(let path):
      if Self.isStale(path) { unlink(path) }
      return try Self.bindUnix(Array(path.utf8), path: path, backlog: backlog)
    case .abstractUnix(let name):
      return try Self.bindUnix([0] + Array(name.utf8), path: nil, backlog: backlog)
    case .host(let host, let port):
      return try Self.bindTCP(host, port: port, reusePort: reusePort, backlog: backlog)
    case .descriptor(let descriptor):
      return try Self.adopt(descriptor)
    }
  }

  /// Takes a socket that listens already; its file, if it has one, stays its owner's.
  ///
  /// - Throws: `Failure` with `EBADF`, `ENOTSOCK`, or `EINVAL` when it does not listen; the
  ///   descriptor stays the caller's then.
  private static func adopt(_ descriptor: CInt) throws(Failure) -> BoundSocket {
    var accepts: CInt = 0
    var family: CInt = 0
    var length = socklen_t(MemoryLayout<CInt>.size)
    guard getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &length) == 0,
      getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &family, &length) == 0
    else { throw Self.failure("descriptor \(descriptor)") }
    guard accepts != 0 else {
      throw Failure(
        errno: EINVAL,
        message: "descriptor \(descriptor): a socket that does not listen"
      )
    }
    _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    let isTCP = family == AF_INET || family == AF_INET6
    let port = isTCP ? try Self.localPort(descriptor) : 1
    return BoundSocket(descriptor: descriptor, port: port, isTCP: isTCP, path: nil)
  }

  /// Sets how many connections may wait to be accepted; the kernel caps it at
  /// `net.core.somaxconn`.
  package func setBacklog(_ backlog: CInt) {
    // It listens already, so all that this call can do is to change the number.
    _ = Glibc.listen(self.descriptor, backlog)
  }

  /// Whether somebody has connected and is not accepted yet.
  package var hasWaiting: Bool {
    var request = pollfd(fd: self.descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&request, 1, 0) > 0 && request.revents & Int16(POLLIN) != 0
  }

  private static func failure(_ message: String) -> Failure {
    let code = Glibc.errno
    return Failure(errno: code, message: "\(message): \(String(cString: strerror(code)))")
  }

  // MARK: TCP

  private static func bindTCP(
    _ host: String,
    port: Int,
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> BoundSocket {
    // One dual-stack socket serves both families; a machine without IPv6 gets the other.
    let candidates =
      ListenAddress.isWildcard(host)
      ? (host == "0.0.0.0" ? ["0.0.0.0"] : ["::", "0.0.0.0"]) : [host]
    var hints = addrinfo()
    hints.ai_socktype = CInt(SOCK_STREAM.rawValue)
    hints.ai_flags = AI_PASSIVE
    var lastFailure: Failure?
    for candidate in candidates {
      var results: UnsafeMutablePointer<addrinfo>?
      let code = getaddrinfo(candidate, String(port), &hints, &results)
      guard code == 0 else {
        let reason = String(cString: gai_strerror(code))
        throw Failure(errno: EADDRNOTAVAIL, message: "Cannot resolve '\(candidate)': \(reason)")
      }
      defer { freeaddrinfo(results) }
      var next = results
      while let info = next {
        do throws(Failure) {
          return try Self.bindTCP(info.pointee, reusePort: reusePort, backlog: backlog)
        } catch {
          // A taken port is the answer; only a family that is missing is worth another try.
          if error.errno != EAFNOSUPPORT, error.errno != EADDRNOTAVAIL { throw error }
          lastFailure = error
        }
        next = info.pointee.ai_next
      }
    }
    throw lastFailure ?? Failure(errno: EADDRNOTAVAIL, message: "No address for '\(host)'")
  }

  private static func bindTCP(
    _ info: addrinfo,
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> BoundSocket {
    let descriptor = try Self.makeSocket(info.ai_family)
    do throws(Failure) {
      try Self.set(descriptor, SOL_SOCKET, SO_REUSEADDR, 1)
      if reusePort { try Self.set(descriptor, SOL_SOCKET, SO_REUSEPORT, 1) }
      if info.ai_family == AF_INET6 {
        try Self.set(descriptor, CInt(IPPROTO_IPV6), IPV6_V6ONLY, 0)
      }
      guard Glibc.bind(descriptor, info.ai_addr, info.ai_addrlen) == 0 else {
        throw Self.failure("bind")
      }
      guard listen(descriptor, backlog) == 0 else { throw Self.failure("listen") }
      let port = try Self.localPort(descriptor)
      return BoundSocket(descriptor: descriptor, port: port, isTCP: true, path: nil)
    } catch {
      Glibc.close(descriptor)
      throw error
    }
  }

  private static func localPort(_ descriptor: CInt) throws(Failure) -> Int {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let code = withUnsafeMutablePointer(to: &storage) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        getsockname(descriptor, $0, &length)
      }
    }
    guard code == 0 else { throw Self.failure("getsockname") }
    var service = [CChar](repeating: 0, count: 8)
    _ = withUnsafePointer(to: &storage) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        getnameinfo(
          $0,
          length,
          nil,
          0,
          &service,
          socklen_t(service.count),
          NI_NUMERICSERV | NI_NUMERICHOST
        )
      }
    }
    let digits = service.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
    return Int(String(decoding: digits, as: UTF8.self)) ?? 0
  }

  // MARK: Unix domain sockets

  private static func bindUnix(
    _ name: [UInt8],
    path: String?,
    backlog: CInt
  ) throws(Failure) -> BoundSocket {
    guard var address = Self.unixAddress(name) else {
      throw Failure(errno: ENAMETOOLONG, message: "The socket's path is too long (max: 107 bytes)")
    }
    let descriptor = try Self.makeSocket(AF_UNIX)
    // An abstract name is as long as the address says, a path ends at its NUL.
    let offset = MemoryLayout<sockaddr_un>.offset(of: \.sun_path) ?? 2
    let length = path == nil ? offset + name.count : MemoryLayout<sockaddr_un>.size
    let code = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.bind(descriptor, $0, socklen_t(length))
      }
    }
    guard code == 0, listen(descriptor, backlog) == 0 else {
      let failure = Self.failure("bind")
      Glibc.close(descriptor)
      throw failure
    }
    return BoundSocket(descriptor: descriptor, port: 1, isTCP: false, path: path)
  }

  private static func unixAddress(_ name: [UInt8]) -> sockaddr_un? {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    guard name.count < MemoryLayout.size(ofValue: address.sun_path) else { return nil }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
    return address
  }

  /// Whether `path` is a socket that nobody listens on: left over, so that it may be replaced.
  private static func isStale(_ path: String) -> Bool {
    var status = stat()
    guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK,
      var address = Self.unixAddress(Array(path.utf8)),
      let descriptor = try? Self.makeSocket(AF_UNIX)
    else { return false }
    defer { Glibc.close(descriptor) }
    let code = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    return code != 0 && Glibc.errno == ECONNREFUSED
  }

  // MARK: System calls

  private static func makeSocket(_ family: CInt) throws(Failure) -> CInt {
    let type = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
    let descriptor = socket(family, type, 0)
    guard descriptor >= 0 else { throw Self.failure("socket") }
    return descriptor
  }

  private static func set(
    _ descriptor: CInt,
    _ level: CInt,
    _ name: CInt,
    _ value: CInt
  ) throws(Failure) {
    var value = value
    let size = socklen_t(MemoryLayout<CInt>.size)
    guard setsockopt(descriptor, level, name, &value, size) == 0 else {
      throw Self.failure("setsockopt")
    }
  }

  /// Closes a socket that no listener took.
  package func close() {
    Glibc.close(self.descriptor)
    self.removeFile()
  }

  /// Removes the file of a Unix domain socket.
  package func removeFile() {
    if let path = self.path { unlink(path) }
  }
}
