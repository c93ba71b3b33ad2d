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
            let given = Arguments(PythonArguments.credentials(arguments, keywords))
          else { return nil }
          do throws(ServerCredentials.InvalidCredentials) {
            try box.credentials.renew(
              keyPairs: given.keyPairs,
              rootCertificates: given.rootCertificates,
              requireClientAuth: given.requireClientAuth
            )
            return Python.newNone()
          } catch {
            return CredentialsBox.refuse(error)
          }
        }
      ]
    )
  }

  /// `make_server_credentials(key_pairs, root_certificates, require_client_auth)`.
  static func make(_ arguments: PythonArguments) -> PythonPointer? {
    guard let given = Arguments(arguments), let types = EngineTypes.current else { return nil }
    do throws(ServerCredentials.InvalidCredentials) {
      let credentials = try ServerCredentials(
        keyPairs: given.keyPairs,
        rootCertificates: given.rootCertificates,
        requireClientAuth: given.requireClientAuth
      )
      return types.credentials.make(CredentialsBox(credentials))
    } catch {
      return Self.refuse(error)
    }
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
      self.rootCertificates = PythonBytes.contents(roots).map { Array($0) }
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

extension PythonArguments {
  /// The parameters of both functions that take credentials.
  static func credentials(_ tuple: PythonPointer?, _ keywords: PythonPointer?) -> PythonArguments {
    PythonArguments(tuple, keywords, "key_pairs", "root_certificates", "require_client_auth")
  }
}
