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
  private let file: FileIdentity?
  /// What was handed in, of which `descriptor` is a copy; see `own`.
  private let original: CInt?
  /// Which process made it. Others may have been forked since.
  private let maker = getpid()

  /// A system call failed.
  package struct Failure: Error {
    package let errno: CInt
    package let message: String
  }

  private init(
    descriptor: CInt,
    port: Int,
    isTCP: Bool,
    path: String?,
    original: CInt? = nil
  ) {
    self.descriptor = descriptor
    self.original = original
    self.port = port
    self.isTCP = isTCP
    self.path = path
    self.file = path.flatMap { FileIdentity(path: $0) }
  }

  /// Binds an address. It waits for the resolver where a host is a name, but never for a peer.
  ///
  /// - Returns: at least one socket. A host that has several addresses, as `localhost` has for IPv4
  ///   and IPv6, gets one for each, all with one port; those of a family that the machine does not
  ///   have are left out.
  /// - Throws: `Failure` with the errno of the call that failed: `EADDRINUSE`, `EACCES`, ….
  package static func bind(
    _ address: ListenAddress,
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> [BoundSocket] {
    switch address {
    case .unix(let path):
      Self.removeStale(path)
      return [try Self.bindUnix(Array(path.utf8), path: path, backlog: backlog)]
    case .abstractUnix(let name):
      return [try Self.bindUnix([0] + Array(name.utf8), path: nil, backlog: backlog)]
    case .host(let host, let port):
      return try Self.bindTCP(host, port: port, reusePort: reusePort, backlog: backlog)
    case .descriptor(let descriptor):
      return [try Self.adopt(descriptor)]
    }
  }

  /// Takes a socket that listens already; its file, if it has one, stays its owner's, and so does the
  /// descriptor until `own`.
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
    let isTCP = family == AF_INET || family == AF_INET6
    let port = isTCP ? try Self.localPort(descriptor) : 1
    // A copy: an event loop can't watch one descriptor twice, should it be handed in again.
    let copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
    guard copy >= 0 else { throw Self.failure("descriptor \(descriptor)") }
    return BoundSocket(
      descriptor: copy,
      port: port,
      isTCP: isTCP,
      path: nil,
      original: descriptor
    )
  }

  /// Whether others may hold the socket, who listen on when this one is closed.
  package var isAdopted: Bool { self.original != nil || !self.isMadeHere }

  private var isMadeHere: Bool { getpid() == self.maker }

  /// Takes possession of a descriptor that was handed in, which stays its owner's until then.
  package func own() {
    if let original { Glibc.close(original) }
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

  /// How often a port that was free for one of a host's addresses only is given back for another.
  private static let mostTries = 16

  private static func bindTCP(
    _ host: String,
    port: Int,
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> [BoundSocket] {
    if ListenAddress.isWildcard(host) {
      return [try Self.bindWildcard(host, port: port, reusePort: reusePort, backlog: backlog)]
    }
    var addresses: [Address] = []
    // RFC 6761 section 6.3: it is both, whatever the machine's list of hosts says, as it is for grpcio.
    for name in host.lowercased() == "localhost" ? ["127.0.0.1", "::1"] : [host] {
      // The machine's list of hosts may name one twice.
      for address in try Self.resolve(name, port: port) where !addresses.contains(address) {
        addresses.append(address)
      }
    }
    for _ in 1..<Self.mostTries where port == 0 {
      do throws(Failure) {
        return try Self.bindAll(addresses, reusePort: reusePort, backlog: backlog)
      } catch  where error.errno == EADDRINUSE {
        continue
      }
    }
    return try Self.bindAll(addresses, reusePort: reusePort, backlog: backlog)
  }

  /// One dual-stack socket serves both families; a machine without IPv6 gets the other.
  private static func bindWildcard(
    _ host: String,
    port: Int,
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> BoundSocket {
    let candidates = host == "0.0.0.0" ? ["0.0.0.0"] : ["::", "0.0.0.0"]
    var missing = Failure(errno: EADDRNOTAVAIL, message: "No address for '\(host)'")
    for candidate in candidates {
      for address in try Self.resolve(candidate, port: port) {
        do throws(Failure) {
          return try Self.bindOne(address, reusePort: reusePort, backlog: backlog)
        } catch {
          guard Self.isMissing(error) else { throw error }
          missing = error
        }
      }
    }
    throw missing
  }

  /// Binds every address, with the port that the first got where theirs is 0.
  private static func bindAll(
    _ addresses: [Address],
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> [BoundSocket] {
    var sockets: [BoundSocket] = []
    var missing = Failure(errno: EADDRNOTAVAIL, message: "The host has no address")
    for var address in addresses {
      if let first = sockets.first { address.setPort(first.port) }
      do throws(Failure) {
        sockets.append(try Self.bindOne(address, reusePort: reusePort, backlog: backlog))
      } catch {
        guard Self.isMissing(error) else {
          for socket in sockets { socket.close() }
          throw error
        }
        missing = error
      }
    }
    if sockets.isEmpty { throw missing }
    return sockets
  }

  /// A taken port is the answer; only an address that the machine does not have is left out.
  private static func isMissing(_ failure: Failure) -> Bool {
    failure.errno == EAFNOSUPPORT || failure.errno == EADDRNOTAVAIL
  }

  /// A socket address of any family, as getaddrinfo(3) gives it.
  private struct Address: Equatable {
    let family: CInt
    private var storage = sockaddr_storage()
    private let length: socklen_t

    init(_ info: addrinfo) {
      self.family = info.ai_family
      self.length = info.ai_addrlen
      withUnsafeMutableBytes(of: &self.storage) { storage in
        let bytes = UnsafeRawBufferPointer(start: info.ai_addr, count: Int(info.ai_addrlen))
        storage.copyBytes(from: bytes.prefix(storage.count))
      }
    }

    static func == (one: Address, other: Address) -> Bool {
      withUnsafeBytes(of: one.storage) { bytes in
        withUnsafeBytes(of: other.storage) { bytes.elementsEqual($0) }
      }
    }

    mutating func setPort(_ port: Int) {
      // sin_port and sin6_port both follow the family, in network order.
      let bytes = UInt16(truncatingIfNeeded: port).bigEndian
      withUnsafeMutableBytes(of: &self.storage) {
        $0.storeBytes(of: bytes, toByteOffset: MemoryLayout<sa_family_t>.size, as: UInt16.self)
      }
    }

    func bind(_ descriptor: CInt) -> CInt {
      withUnsafePointer(to: self.storage) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.bind(descriptor, $0, self.length)
        }
      }
    }
  }

  private static func resolve(_ host: String, port: Int) throws(Failure) -> [Address] {
    var hints = addrinfo()
    hints.ai_socktype = CInt(SOCK_STREAM.rawValue)
    hints.ai_flags = AI_PASSIVE
    var results: UnsafeMutablePointer<addrinfo>?
    let code = getaddrinfo(host, String(port), &hints, &results)
    guard code == 0 else {
      if code == EAI_SYSTEM { throw Self.failure("Cannot resolve '\(host)'") }
      let reason = String(cString: gai_strerror(code))
      throw Failure(errno: EADDRNOTAVAIL, message: "Cannot resolve '\(host)': \(reason)")
    }
    defer { freeaddrinfo(results) }
    var addresses: [Address] = []
    var next = results
    while let info = next {
      addresses.append(Address(info.pointee))
      next = info.pointee.ai_next
    }
    return addresses
  }

  private static func bindOne(
    _ address: Address,
    reusePort: Bool,
    backlog: CInt
  ) throws(Failure) -> BoundSocket {
    let descriptor = try Self.makeSocket(address.family)
    do throws(Failure) {
      try Self.set(descriptor, SOL_SOCKET, SO_REUSEADDR, 1)
      if reusePort { try Self.set(descriptor, SOL_SOCKET, SO_REUSEPORT, 1) }
      if address.family == AF_INET6 {
        try Self.set(descriptor, CInt(IPPROTO_IPV6), IPV6_V6ONLY, 0)
      }
      guard address.bind(descriptor) == 0 else {
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
    // An abstract name, which begins with a NUL, needs none at its end; unix(7).
    let mostBytes = MemoryLayout.size(ofValue: address.sun_path) - (name.first == 0 ? 0 : 1)
    guard name.count <= mostBytes else { return nil }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
    return address
  }

  /// Removes a socket's file that nobody listens on, as a crashed process leaves it.
  ///
  /// Of two processes that do so in the same instant one may lose its new file to the other:
  /// unlink(2) takes no more than a path.
  private static func removeStale(_ path: String) {
    guard let file = FileIdentity(path: path), file.isSocket, Self.isDeaf(path) else { return }
    file.remove(path)
  }

  /// Whether nobody listens. It asks without waiting: a connection to a socket whose backlog is full
  /// would wait until somebody accepts.
  private static func isDeaf(_ path: String) -> Bool {
    guard var address = Self.unixAddress(Array(path.utf8)),
      let descriptor = try? Self.makeSocket(AF_UNIX, flags: CInt(SOCK_NONBLOCK.rawValue))
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

  private static func makeSocket(_ family: CInt, flags: CInt = 0) throws(Failure) -> CInt {
    let type = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue) | flags
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

  /// Hands the descriptor over, and the file with it: who takes it closes one and removes the other.
  package func release() -> CInt { self.descriptor }

  /// Closes a socket that no listener took.
  package func close() {
    self.removeFile()
    Glibc.close(self.descriptor)
  }

  /// Removes the file of a Unix domain socket, if it is still the one that this socket made: a
  /// successor may listen there already. In a process that was forked since it stays: others listen
  /// there.
  ///
  /// It must be called before the socket is closed, which keeps the file's number from being given to
  /// a successor's. Between the look and the removal another process may put its file there, which
  /// is lost then: unlink(2) takes no more than a path.
  package func removeFile() {
    if self.isMadeHere, let path = self.path { self.file?.remove(path) }
  }
}

/// Which file a path leads to.
private struct FileIdentity {
  private let device: dev_t
  private let number: ino_t
  let isSocket: Bool

  /// `nil` when there is none.
  init?(path: String) {
    var status = stat()
    guard lstat(path, &status) == 0 else { return nil }
    self.device = status.st_dev
    self.number = status.st_ino
    self.isSocket = status.st_mode & S_IFMT == S_IFSOCK
  }

  /// Removes the file that is at `path`, if it is this one.
  func remove(_ path: String) {
    guard let now = FileIdentity(path: path), now.device == self.device,
      now.number == self.number
    else { return }
    unlink(path)
  }
}
