internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// The methods of `grpc.ServicerContext` and `grpc.aio.ServicerContext` that are the same, with
/// grpcio's semantics.
enum ServicerContextMethods {
  private static func context(_ object: PythonPointer?) -> ServicerContext? {
    HeapType<ServicerContext>.payload(object)
  }

  /// What is kept of trailing metadata: as it was given, or a tuple that grpc.aio would take.
  private static func trailing(
    _ given: PythonPointer,
    _ context: ServicerContext
  ) -> PythonReference? {
    guard context.followsAsyncio else { return PythonReference(retaining: given) }
    let check = context.bindings.coroutines.trailingMetadata
    return PythonReference(owning: py_call1(check.pointer, given))
  }

  // MARK: Metadata and compression

  static var metadata: [PyMethodDef] {
    [
      PythonMethod.noArguments(
        "invocation_metadata",
        "The metadata that the client sent."
      ) { object, _ in Self.context(object)?.invocationMetadata() },
      PythonMethod.keywords(
        "send_initial_metadata",
        "Send initial metadata, before the first response."
      ) { object, arguments, keywords in
        guard let context = Self.context(object),
          let value = PythonArguments.single(
            arguments,
            keywords,
            of: "send_initial_metadata",
            "initial_metadata"
          ),
          let metadata = PythonMetadata.parse(value)
        else { return nil }
        if let termination = context.call.termination, termination != .answered {
          PyErr_SetNone(context.bindings.rpcError.pointer)
          return nil
        }
        guard context.call.sendInitialMetadata(metadata) else {
          PythonError.raiseValueError("Initial metadata no longer allowed!")
          return nil
        }
        return Python.newNone()
      },
      PythonMethod.keywords(
        "set_trailing_metadata",
        "Set the metadata that goes out with the status."
      ) { object, arguments, keywords in
        guard let context = Self.context(object),
          let given = PythonArguments.single(
            arguments,
            keywords,
            of: "set_trailing_metadata",
            "trailing_metadata"
          ),
          let value = Self.trailing(given, context),
          let metadata = PythonMetadata.parse(value.pointer)
        else { return nil }
        context.trailingMetadata = PythonHandle(value)
        context.wireTrailingMetadata = metadata.entries.isEmpty ? nil : metadata
        return Python.newNone()
      },
      PythonMethod.noArguments(
        "trailing_metadata",
        "The metadata that was set to go out with the status."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        if context.trailingMetadata == nil { return PythonCollections.tuple(count: 0) { _ in nil } }
        return Self.newReference(context.trailingMetadata)
      },
      PythonMethod.keywords(
        "set_compression",
        "Set how the responses are compressed."
      ) { object, arguments, keywords in
        guard let context = Self.context(object),
          let value = PythonArguments.single(
            arguments,
            keywords,
            of: "set_compression",
            "compression"
          )
        else { return nil }
        // As grpcio: the server's own.
        if Python.isNone(value) { return Python.newNone() }
        guard let algorithm = CompressionAlgorithm(python: value) else { return nil }
        context.call.setEncoding(algorithm)
        return Python.newNone()
      },
      PythonMethod.noArguments(
        "disable_next_message_compression",
        "Send the next response as it is."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        context.mayCompressNext = false
        return Python.newNone()
      },
    ]
  }

  // MARK: Status

  /// For `django_grpc`, beside grpcio's methods.
  static var observation: [PyMethodDef] {
    [
      PythonMethod.noArguments(
        "_final_code",
        "The number of the status that the call has ended with; None while it runs."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        return context.call.code.map { PythonNumber.make($0.rawValue) } ?? Python.newNone()
      },
      PythonMethod.oneArgument(
        "_count_query",
        "Count a query to a database and its nanoseconds, for the access log."
      ) { object, nanoseconds in
        guard let context = Self.context(object), let nanoseconds else { return nil }
        guard let nanoseconds = PythonNumber.int(nanoseconds) else {
          PythonError.raiseTypeError("the nanoseconds must be an int")
          return nil
        }
        context.call.countQuery(.nanoseconds(Int64(nanoseconds)))
        return Python.newNone()
      },
    ]
  }

  /// The status to end with.
  static var outcome: [PyMethodDef] {
    [
      PythonMethod.keywords("set_code", "Set the status code to end with.") {
        object,
        arguments,
        keywords in
        guard let context = Self.context(object),
          let code = PythonArguments.single(arguments, keywords, of: "set_code", "code")
        else { return nil }
        context.code = Python.isNone(code) ? nil : PythonHandle(retaining: code)
        return Python.newNone()
      },
      PythonMethod.keywords("set_details", "Set the details to end with.") {
        object,
        arguments,
        keywords in
        guard let context = Self.context(object),
          let details = PythonArguments.single(arguments, keywords, of: "set_details", "details"),
          let encoded = Self.encoded(details)
        else { return nil }
        context.details = encoded
        return Python.newNone()
      },
      PythonMethod.noArguments("code", "The status code that was set; None when none was.") {
        object,
        _ in
        guard let context = Self.context(object) else { return nil }
        return Self.newReference(context.code)
      },
    ]
  }

  /// Details as UTF-8 `bytes`; `nil` with TypeError set when they are neither text nor bytes.
  ///
  /// Whatever encodes itself is text, as for grpcio's server: so is Django's lazy text.
  static func encoded(_ details: PythonPointer) -> PythonHandle? {
    if py_is_bytes(details) != 0 { return PythonHandle(retaining: details) }
    if py_is_string(details) != 0 {
      guard let bytes = PythonReference(owning: PyUnicode_AsUTF8String(details)) else { return nil }
      return PythonHandle(bytes)
    }
    if let encode = Python.optionalAttribute(details, "encode") {
      guard let name = PythonReference(owning: PythonString.make("utf-8")),
        let bytes = PythonReference(owning: py_call1(encode.pointer, name.pointer))
      else { return nil }
      if py_is_bytes(bytes.pointer) != 0 { return PythonHandle(bytes) }
    }
    PythonError.raiseTypeError("the details of a status must be text")
    return nil
  }

  // MARK: Peer

  static var peer: [PyMethodDef] {
    [
      PythonMethod.noArguments("peer", "The address of the peer.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return PythonString.make(context.call.peer.description)
      },
      PythonMethod.noArguments("peer_identities", "Whom the peer's certificate names.") {
        object,
        _ in
        guard let context = Self.context(object) else { return nil }
        guard let identity = PeerIdentity(context.call.peer) else { return Python.newNone() }
        return identity.makeIdentities()
      },
      PythonMethod.noArguments(
        "peer_identity_key",
        "The property of the auth context that identifies the peer."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        guard let identity = PeerIdentity(context.call.peer) else { return Python.newNone() }
        return PythonString.make(identity.key)
      },
      PythonMethod.noArguments("auth_context", "What is known of the connection's security.") {
        object,
        _ in
        guard let context = Self.context(object) else { return nil }
        return PeerIdentity.makeAuthContext(context.call.peer)
      },
    ]
  }

  // MARK: Values

  static func newReference(_ handle: PythonHandle?) -> PythonPointer? {
    guard let handle else { return Python.newNone() }
    py_incref(handle.pointer)
    return handle.pointer
  }
}

extension CompressionAlgorithm {
  /// A `grpc.Compression`; `nil` with ValueError set when it is none.
  init?(python object: PythonPointer) {
    switch PythonNumber.int(object) {
    case 0: self = .identity
    case 1: self = .deflate
    case 2: self = .gzip
    default:
      PythonError.raiseValueError("compression must be a grpc.Compression")
      return nil
    }
  }
}
