internal import CPythonABI
internal import GRPCEngineTransport
internal import PythonInterop

/// `_engine.ServerCredentials`: credentials that Python only passes on.
final class CredentialsBox {
  let credentials: ServerCredentials

  init(_ credentials: ServerCredentials) { self.credentials = credentials }

  static func makeType() -> HeapType<CredentialsBox>? {
    HeapType.make(
      name: "django_grpc._engine.ServerCredentials",
      documentation: "What ssl_server_credentials() made; for add_secure_port().",
      methods: [
        PythonMethod.keywords("renew", "Serve later connections with others.") {
          object,
          arguments,
          keywords in
          guard let box = HeapType<CredentialsBox>.payload(object),
            let arguments = PythonArguments(
              arguments,
              keywords,
              of: "renew",
              "key_pairs",
              "root_certificates",
              "require_client_auth"
            ),
            let given = Arguments(arguments)
          else { return nil }
          do throws(ServerCredentials.InvalidCredentials) {
            let made = Python.detached {
              Result { () throws(ServerCredentials.InvalidCredentials) in
                try box.credentials.renew(
                  keyPairs: given.keyPairs,
                  rootCertificates: given.rootCertificates,
                  requireClientAuth: given.requireClientAuth
                )
              }
            }
            try made.get()
            return Python.newNone()
          } catch {
            return CredentialsBox.refuse(error)
          }
        }
      ]
    )
  }

  /// `make_server_credentials(key_pairs, root_certificates, require_client_auth,
  /// minimum_version, cipher_suites)`.
  static func make(_ arguments: PythonArguments) -> PythonPointer? {
    guard let given = Arguments(arguments), let policy = TLSPolicy(arguments),
      let types = EngineTypes.current
    else { return nil }
    do throws(ServerCredentials.InvalidCredentials) {
      // Parsing and checking keys takes a while, which other threads need not spend waiting.
      let made = Python.detached {
        Result { () throws(ServerCredentials.InvalidCredentials) in
          try ServerCredentials(
            keyPairs: given.keyPairs,
            rootCertificates: given.rootCertificates,
            requireClientAuth: given.requireClientAuth,
            policy: policy
          )
        }
      }
      return types.credentials.make(CredentialsBox(try made.get()))
    } catch {
      return Self.refuse(error)
    }
  }

  /// `make_local_credentials(is_unix)`.
  static func makeLocal(_ isUnix: PythonPointer) -> PythonPointer? {
    let local: LocalConnection = Python.isTrue(isUnix) ? .unix : .tcp
    return EngineTypes.current?.credentials.make(CredentialsBox(ServerCredentials(local: local)))
  }

  /// `certificate_validity(chain)`.
  static func validity(_ chain: PythonPointer) -> PythonPointer? {
    guard let bytes = PythonBytes.contents(chain) else {
      PythonError.raiseTypeError("a certificate chain must be PEM bytes")
      return nil
    }
    guard let validity = ServerCredentials.validity(of: Array(bytes)) else {
      return Self.refuse(.init(message: "there is no PEM certificate in the certificate chain"))
    }
    let moments = [validity.begin, validity.end]
    return PythonCollections.tuple(count: 2) { PythonNumber.make(moments[$0]) }
  }

  private static func refuse(_ error: ServerCredentials.InvalidCredentials) -> PythonPointer? {
    PythonError.raiseValueError("Cannot use the server credentials: \(error.message)")
    return nil
  }

  private struct Arguments {
    var keyPairs: [ServerCredentials.KeyPair] = []
    let rootCertificates: [UInt8]?
    let requireClientAuth: Bool

    /// - Returns: `nil` with an exception set.
    init?(_ arguments: PythonArguments) {
      guard let pairs = arguments[0], let roots = arguments[1], let required = arguments[2] else {
        return nil
      }
      if Python.isNone(roots) {
        self.rootCertificates = nil
      } else if let bytes = PythonBytes.contents(roots) {
        self.rootCertificates = Array(bytes)
      } else {
        // To take it for none would let in clients that nobody vouches for.
        PythonError.raiseTypeError("the root certificates must be PEM bytes or None")
        return nil
      }
      self.requireClientAuth = Python.isTrue(required)
      var keyPairs: [ServerCredentials.KeyPair] = []
      let isComplete = PythonCollections.forEach(pairs) { pair in
        guard let key = PythonReference(owning: PySequence_GetItem(pair, 0)),
          let chain = PythonReference(owning: PySequence_GetItem(pair, 1))
        else { return false }
        guard let keyBytes = PythonBytes.contents(key.pointer),
          let chainBytes = PythonBytes.contents(chain.pointer)
        else {
          PythonError.raiseTypeError("a private key and a certificate chain must be PEM bytes")
          return false
        }
        keyPairs.append(.init(privateKey: Array(keyBytes), certificateChain: Array(chainBytes)))
        return true
      }
      guard isComplete else { return nil }
      self.keyPairs = keyPairs
    }
  }
}

extension TLSPolicy {
  /// Reads the fourth and fifth argument: 12 or 13, and OpenSSL's names.
  ///
  /// - Returns: `nil` with an exception set.
  fileprivate init?(_ arguments: PythonArguments) {
    guard let version = arguments[3], let suites = arguments[4] else { return nil }
    self.init()
    self.minimumVersion = PythonNumber.int(version) == 13 ? .tls13 : .tls12
    var names: [String] = []
    let isComplete = PythonCollections.forEach(suites) { suite in
      guard let name = PythonString.value(suite), Self.allowedCipherSuites.contains(name) else {
        PythonError.raiseValueError("a cipher suite must be one of \(Self.allowedCipherSuites)")
        return false
      }
      names.append(name)
      return true
    }
    guard isComplete else { return nil }
    self.cipherSuites = names
  }
}
