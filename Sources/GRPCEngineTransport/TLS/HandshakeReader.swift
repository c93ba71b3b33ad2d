/// Reads what a TLS handshake says in the clear (RFC 8446 section 4.1, RFC 5246 section 7.4, RFC 8422
/// section 5.4): NIOSSL does not tell of it.
///
/// A value that is given the bytes of both sides. What it can't read it leaves out: the handshake
/// itself is NIOSSL's, which refuses what is wrong.
package struct HandshakeReader: Sendable {
  /// The host that the client asked for (RFC 6066 section 3).
  package private(set) var serverName: String?
  /// The group of the key exchange, by the names that grpcio has; `nil` for one that has none.
  package private(set) var keyExchangeGroup: String?
  /// Whether an earlier session was resumed.
  package private(set) var isResumed = false

  /// What is looked for next.
  private enum Stage { case hello, keys, done }
  private var client = Flight()
  private var server = Flight()
  private var hasClientHello = false
  private var stage = Stage.hello

  package init() {}

  /// Whether there is nothing more to read.
  package var isDone: Bool { self.stage == .done }

  package mutating func receive(_ bytes: some Collection<UInt8>) {
    guard !self.hasClientHello else { return }
    self.client.append(bytes)
    while !self.hasClientHello, let record = self.client.nextRecord() {
      guard record.type == 22 else {
        self.hasClientHello = true
        return
      }
      guard let message = self.client.nextMessage(record.contents) else { continue }
      self.hasClientHello = true
      if message.type == 1 { self.serverName = Self.readServerName(message.body) }
    }
    if self.client.isTooLong { self.hasClientHello = true }
  }

  package mutating func send(_ bytes: some Collection<UInt8>) {
    guard !self.isDone else { return }
    self.server.append(bytes)
    while !self.isDone, let record = self.server.nextRecord() {
      switch (record.type, self.stage) {
      case (22, _):
        var next = self.server.nextMessage(record.contents)
        while !self.isDone, let message = next {
          self.readServer(message)
          next = self.server.nextMessage([])
        }
      // One that means nothing, for the sake of old proxies, follows a plea to try again.
      case (20, .hello): break
      case (20, .keys):
        // Neither certificate nor keys.
        self.isResumed = true
        self.stage = .done
      default: self.stage = .done
      }
    }
    if self.server.isTooLong { self.stage = .done }
  }

  private mutating func readServer(_ message: Flight.Message) {
    switch (message.type, self.stage) {
    case (2, .hello): self.readServerHello(message.body)
    case (4, .keys):
      // A new ticket in place of a certificate (RFC 5077 section 3.4).
      self.isResumed = true
      self.stage = .done
    case (11, .keys), (22, .keys): break
    case (12, .keys):
      var bytes = Bytes(message.body)
      if bytes.number(1) == 3, let group = bytes.number(2) {
        self.keyExchangeGroup = Self.groupName(group)
      }
      self.stage = .done
    default: self.stage = .done
    }
  }

  /// The random value of a server hello that asks the client to try again (RFC 8446 section 4.1.3).
  private static let helloRetryRequest: [UInt8] = [
    0xCF, 0x21, 0xAD, 0x74, 0xE5, 0x9A, 0x61, 0x11, 0xBE, 0x1D, 0x8C, 0x02, 0x1E, 0x65, 0xB8, 0x91,
    0xC2, 0xA2, 0x11, 0x16, 0x7A, 0xBB, 0x8C, 0x5E, 0x07, 0x9E, 0x09, 0xE2, 0xC8, 0xA8, 0x33, 0x9C,
  ]

  private mutating func readServerHello(_ body: [UInt8]) {
    var bytes = Bytes(body)
    guard bytes.number(2) != nil, let random = bytes.take(32), bytes.vector(1) != nil,
      bytes.take(3) != nil
    else {
      self.stage = .done
      return
    }
    if Array(random) == Self.helloRetryRequest { return }
    let extensions = Self.readExtensions(&bytes)
    guard extensions[43] != nil else {
      // TLS 1.2: the rest is in the messages that follow.
      self.stage = .keys
      return
    }
    var share = Bytes(extensions[51] ?? [])
    self.keyExchangeGroup = share.number(2).flatMap(Self.groupName)
    self.isResumed = extensions[41] != nil
    self.stage = .done
  }

  private static func readServerName(_ body: [UInt8]) -> String? {
    var bytes = Bytes(body)
    // Version, random, session id, cipher suites, compression methods.
    guard bytes.take(34) != nil, bytes.vector(1) != nil, bytes.vector(2) != nil,
      bytes.vector(1) != nil
    else { return nil }
    var names = Bytes(Self.readExtensions(&bytes)[0] ?? [])
    guard let list = names.vector(2) else { return nil }
    var entry = Bytes(Array(list))
    guard entry.number(1) == 0, let name = entry.vector(2), !name.isEmpty else { return nil }
    return String(decoding: name, as: UTF8.self)
  }

  private static func readExtensions(_ bytes: inout Bytes) -> [Int: [UInt8]] {
    guard let all = bytes.vector(2) else { return [:] }
    var rest = Bytes(Array(all))
    var extensions: [Int: [UInt8]] = [:]
    while let type = rest.number(2), let contents = rest.vector(2) {
      extensions[type] = Array(contents)
    }
    return extensions
  }

  private static func groupName(_ group: Int) -> String? {
    switch group {
    case 0x0017: "prime256v1"
    case 0x0018: "secp384r1"
    case 0x0019: "secp521r1"
    case 0x001D: "X25519"
    case 0x11EC: "X25519MLKEM768"
    default: nil
    }
  }

  /// Handshake messages out of the records of one side (RFC 8446 section 5.1).
  private struct Flight {
    struct Message {
      let type: UInt8
      let body: [UInt8]
    }

    /// More than the largest flight in the clear, a certificate chain among it, has.
    private static let most = 1 << 18

    private var records: [UInt8] = []
    /// Of `records`, what has been read: it goes with the next bytes, not record by record.
    private var read = 0
    private var messages: [UInt8] = []

    var isTooLong: Bool {
      self.records.count - self.read + self.messages.count > Self.most
    }

    mutating func append(_ bytes: some Collection<UInt8>) {
      self.records.removeFirst(self.read)
      self.read = 0
      self.records += bytes
    }

    mutating func nextRecord() -> (type: UInt8, contents: [UInt8])? {
      let left = self.records[self.read...]
      guard left.count >= 5 else { return nil }
      let begin = left.startIndex + 5
      let length = Int(left[begin - 2]) << 8 | Int(left[begin - 1])
      guard left.count >= 5 + length else { return nil }
      self.read += 5 + length
      return (left[begin - 5], Array(left[begin..<begin + length]))
    }

    /// The next message, with what one more record has of it.
    mutating func nextMessage(_ contents: [UInt8]) -> Message? {
      self.messages += contents
      guard self.messages.count >= 4 else { return nil }
      let length =
        Int(self.messages[1]) << 16 | Int(self.messages[2]) << 8 | Int(self.messages[3])
      guard self.messages.count >= 4 + length else { return nil }
      let message = Message(
        type: self.messages[0],
        body: Array(self.messages[4..<4 + length])
      )
      self.messages.removeFirst(4 + length)
      return message
    }
  }

  /// Bytes that are taken from the front, as TLS presents its values (RFC 8446 section 3).
  private struct Bytes {
    private var rest: ArraySlice<UInt8>

    init(_ bytes: [UInt8]) { self.rest = bytes[...] }

    mutating func take(_ count: Int) -> ArraySlice<UInt8>? {
      guard self.rest.count >= count else { return nil }
      defer { self.rest = self.rest.dropFirst(count) }
      return self.rest.prefix(count)
    }

    mutating func number(_ size: Int) -> Int? {
      self.take(size)?.reduce(0) { $0 << 8 | Int($1) }
    }

    /// What follows its length, which has `size` bytes.
    mutating func vector(_ size: Int) -> ArraySlice<UInt8>? {
      self.number(size).flatMap { self.take($0) }
    }
  }
}
