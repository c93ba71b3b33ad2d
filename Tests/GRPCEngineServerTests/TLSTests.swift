import GRPCEngineServer
import GRPCEngineTesting
import GRPCEngineTransport
import GRPCEngineWire
import NIOCore
import NIOSSL
import Testing

/// Secure ports, with NIOSSL's client at the other end.
struct TLSTests {
  private static let server = ServerCredentials.KeyPair(
    privateKey: TestCertificates.serverKey,
    certificateChain: TestCertificates.serverCertificate
  )
  private static let second = ServerCredentials.KeyPair(
    privateKey: TestCertificates.secondKey,
    certificateChain: TestCertificates.secondCertificate
  )

  private func credentials(
    _ keyPairs: [ServerCredentials.KeyPair] = [Self.server],
    roots: [UInt8]? = nil,
    requireClientAuth: Bool = false
  ) throws -> ServerCredentials {
    try ServerCredentials(
      keyPairs: keyPairs,
      rootCertificates: roots,
      requireClientAuth: requireClientAuth
    )
  }

  private func connect(
    to running: RunningServer,
    host: String = "localhost",
    protocols: [String] = ["h2"],
    certificate: (chain: [UInt8], key: [UInt8])? = nil
  ) throws -> TestClient {
    var configuration = TLSConfiguration.makeClientConfiguration()
    configuration.trustRoots = .certificates(
      try NIOSSLCertificate.fromPEMBytes(TestCertificates.authority)
    )
    configuration.applicationProtocols = protocols
    if let certificate {
      configuration.certificateChain = try NIOSSLCertificate.fromPEMBytes(certificate.chain)
        .map { .certificate($0) }
      configuration.privateKey = .privateKey(
        try NIOSSLPrivateKey(bytes: certificate.key, format: .pem)
      )
    }
    let context = try NIOSSLContext(configuration: configuration)
    let connection = try SocketConnection(to: running.address) { channel in
      try channel.pipeline.syncOperations.addHandler(
        NIOSSLClientHandler(context: context, serverHostname: host)
      )
    }
    return TestClient(connection)
  }

  @Test("Calls travel encrypted, small and large ones")
  func unary() throws {
    let handler = TestHandler.echo()
    try RunningServer.run(["/t/echo": handler], credentials: try self.credentials()) { running in
      let client = try self.connect(to: running)
      try client.handshake()
      let message = [UInt8](repeating: 1, count: 300_000)
      #expect(try client.unary("/t/echo", [1, 2]).payloads == [[1, 2]])
      #expect(try client.unary("/t/echo", message).payloads == [message])
      let peer = try handler.handled.call().peer
      #expect(peer.isSecure && peer.certificates.isEmpty)
      let handshake = try #require(peer.handshake)
      #expect(handshake.version == "TLSv1.3" && !handshake.isResumed)
      #expect(handshake.serverName == "localhost" && handshake.keyExchangeGroup != nil)
      #expect(peer.description.hasPrefix("ipv4:127.0.0.1:"))
    }
  }

  @Test("A client that does not ask for HTTP/2 is closed", arguments: [[], ["http/1.1"]])
  func noALPN(protocols: [String]) throws {
    try RunningServer.run([:], credentials: try self.credentials()) { running in
      let client = try self.connect(to: running, protocols: protocols)
      client.send { $0.preface() }
      try client.waitForClose()
      #expect(client.settings == nil || client.settingsAcks == 0)
    }
  }

  @Test("A plaintext client on a secure port is closed, and others go on")
  func plaintext() throws {
    try RunningServer.run(
      ["/t/echo": TestHandler.echo()],
      credentials: try self.credentials()
    ) { running in
      let neighbour = try self.connect(to: running)
      try neighbour.handshake()
      let client = TestClient(try SocketConnection(to: running.address))
      client.send { writer in
        writer.preface()
        writer.settings()
      }
      // An alert of TLS is all that may come, and that is no frame.
      while let bytes = try client.connection.read("the end") {
        #expect(bytes.readableBytesView.first == 0x15)
      }
      #expect(try neighbour.unary("/t/echo", [1]).payloads == [[1]])
    }
  }

  @Test("A client that stops in the middle of the handshake is closed when its time is over")
  func halfHandshake() throws {
    var configuration = ServerConfiguration()
    configuration.transport.handshakeTimeout = .milliseconds(200)
    try RunningServer.run([:], configuration: configuration, credentials: try self.credentials()) {
      running in
      let connection = try SocketConnection(to: running.address)
      connection.write(ByteBuffer(bytes: [0x16, 3, 1, 2, 0, 1]))
      while try connection.read("the end") != nil {}
      try poll("the server's end of it") { running.server.connectionCount == 0 }
    }
  }

  @Test("The certificate that names the client's host is shown, the first one to others")
  func serverNames() throws {
    let credentials = try self.credentials([Self.server, Self.second])
    try RunningServer.run(["/t/echo": TestHandler.echo()], credentials: credentials) { running in
      for host in ["server.test", "second.test", "SECOND.test", "a.wild.test"] {
        let client = try self.connect(to: running, host: host)
        try client.handshake()
        #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
      }
      for host in ["other.test", "a.b.wild.test", "wild.test"] {
        let client = try self.connect(to: running, host: host)
        #expect(throws: TestClient.ConnectionClosed.self) { try client.handshake() }
      }
    }
  }

  @Test("A client's certificate is verified and its names known", arguments: [true, false])
  func clientCertificate(isRequired: Bool) throws {
    let handler = TestHandler.echo()
    let credentials = try self.credentials(
      roots: TestCertificates.authority,
      requireClientAuth: isRequired
    )
    try RunningServer.run(["/t/echo": handler], credentials: credentials) { running in
      let client = try self.connect(
        to: running,
        certificate: (TestCertificates.clientCertificate, TestCertificates.clientKey)
      )
      try client.handshake()
      #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
      let names = CertificateNames(try #require(try handler.handled.call().peer.certificates.first))
      #expect(names.commonName == Array("client.test".utf8))
      #expect(names.subject == Array("CN=client.test".utf8))
      #expect(
        names.alternativeNames.map { String(decoding: $0.text, as: UTF8.self) }
          == ["client.test", "127.0.0.1"]
      )
      let stranger = try self.connect(
        to: running,
        certificate: (TestCertificates.strangerCertificate, TestCertificates.strangerKey)
      )
      #expect(throws: TestClient.ConnectionClosed.self) { try stranger.handshake() }
      let anonymous = try self.connect(to: running)
      if isRequired {
        #expect(throws: TestClient.ConnectionClosed.self) { try anonymous.handshake() }
      } else {
        try anonymous.handshake()
        #expect(try anonymous.unary("/t/echo", [2]).payloads == [[2]])
      }
    }
  }

  @Test("Renewed credentials are shown to those who come later, and earlier calls go on")
  func renewal() throws {
    let credentials = try self.credentials()
    try RunningServer.run(["/t/echo": TestHandler.echo()], credentials: credentials) { running in
      let earlier = try self.connect(to: running, host: "server.test")
      try earlier.handshake()
      try credentials.renew(
        keyPairs: [Self.second],
        rootCertificates: nil,
        requireClientAuth: false
      )
      let later = try self.connect(to: running, host: "second.test")
      try later.handshake()
      for client in [earlier, later] {
        #expect(try client.unary("/t/echo", [1]).payloads == [[1]])
      }
      #expect(throws: ServerCredentials.InvalidCredentials.self) {
        try credentials.renew(keyPairs: [], rootCertificates: nil, requireClientAuth: false)
      }
      let last = try self.connect(to: running, host: "second.test")
      try last.handshake()
    }
  }

  @Test("A drain lets encrypted calls end")
  func drain() throws {
    let handler = TestHandler(startsOnFirstMessage: true) { _, _ in }
    try RunningServer.run(["/t/slow": handler], credentials: try self.credentials()) { running in
      let client = try self.connect(to: running)
      try client.handshake()
      let stream = client.open("/t/slow")
      try client.message([1], on: stream, isEnd: true)
      let call = try handler.handled.call()
      let hasStopped = Monitor(false)
      running.server.drain { hasStopped.update { $0 = true } }
      try client.wait("the second GOAWAY") { client.goAways.count == 2 }
      try [UInt8]([7]).withUnsafeBytes {
        try call.respond($0, mayCompress: false, status: .ok, metadata: nil)
      }
      let answer = try client.answer(on: stream)
      #expect(answer.payloads == [[7]] && answer.code == .ok)
      try client.waitForClose()
      try hasStopped.wait("the server's end") { $0 }
    }
  }

  @Test("What cannot be used is refused by its reason")
  func invalid() {
    let text = Array("no PEM".utf8)
    let cases: [([ServerCredentials.KeyPair], [UInt8]?, String)] = [
      ([], nil, "at least one"),
      ([.init(privateKey: text, certificateChain: Self.server.certificateChain)], nil, "key"),
      (
        [.init(privateKey: Self.server.privateKey, certificateChain: text)], nil,
        "certificate chain"
      ),
      ([.init(privateKey: [], certificateChain: [])], nil, "certificate chain"),
      (
        [
          .init(
            privateKey: Self.second.privateKey,
            certificateChain: Self.server.certificateChain
          )
        ], nil, "does not fit"
      ),
      ([Self.server], text, "root certificates"),
    ]
    for (keyPairs, roots, reason) in cases {
      let error = #expect(throws: ServerCredentials.InvalidCredentials.self) {
        try self.credentials(keyPairs, roots: roots)
      }
      #expect(error?.message.contains(reason) == true, "\(error?.message ?? "")")
    }
  }
}
