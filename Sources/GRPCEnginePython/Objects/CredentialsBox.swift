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
      methods: []
    )
  }

  /// `ssl_server_credentials(pairs, root_certificates, require_client_auth)`.
  static func make(_ arguments: PythonArguments) -> PythonPointer? {
    guard let pairs = arguments[0], let roots = arguments[1], let required = arguments[2],
      let types = EngineTypes.current
    else { return nil }
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
    do throws(ServerCredentials.InvalidCredentials) {
      let credentials = try ServerCredentials(
        keyPairs: keyPairs,
        rootCertificates: PythonBytes.contents(roots).map { Array($0) },
        requireClientAuth: Python.isTrue(required)
      )
      return types.credentials.make(CredentialsBox(credentials))
    } catch {
      PythonError.raiseValueError("Cannot use the server credentials: \(error.message)")
      return nil
    }
  }
}
