internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// `_engine.ServicerContext`: the methods of `grpc.ServicerContext`, with grpcio's semantics.
enum SyncServicerContextType {
  static func make() -> HeapType<SyncServicerContext>? {
    HeapType.make(
      name: "django_grpc._engine.ServicerContext",
      documentation: "A call, as its servicer sees it; a virtual subclass of grpc.ServicerContext.",
      methods: Self.stateMethods + Self.statusMethods + ServicerContextMethods.metadata
        + ServicerContextMethods.outcome + ServicerContextMethods.observation
        + ServicerContextMethods.peer
    )
  }

  private static func context(_ object: PythonPointer?) -> SyncServicerContext? {
    HeapType<SyncServicerContext>.payload(object)
  }

  // MARK: State of the call

  private static var stateMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments("is_active", "Whether the call has not ended.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        return Python.newBool(context.call.isActive)
      },
      PythonMethod.noArguments(
        "time_remaining",
        "Seconds until the deadline; infinite without one, on an asyncio server None."
      ) { object, _ in
        guard let context = Self.context(object) else { return nil }
        if context.followsAsyncio, context.call.deadline == nil { return Python.newNone() }
        return PythonNumber.make(context.timeRemaining)
      },
      PythonMethod.noArguments("cancel", "End the call with CANCELLED.") { object, _ in
        guard let context = Self.context(object) else { return nil }
        context.call.cancel()
        return Python.newNone()
      },
      PythonMethod.keywords(
        "add_callback",
        "Have a callable called when the call ends; False when it has ended."
      ) { object, arguments, keywords in
        guard let context = Self.context(object),
          let callback = PythonArguments.single(arguments, keywords, of: "add_callback", "callback")
        else { return nil }
        return Python.newBool(context.addCallback(callback))
      },
    ]
  }

  // MARK: Status

  private static var statusMethods: [PyMethodDef] {
    [
      PythonMethod.keywords("abort", "End the call with a status, by raising.") {
        object,
        arguments,
        keywords in
        guard let context = Self.context(object) else { return nil }
        guard let given = PythonArguments(arguments, keywords, of: "abort", "code", "details"),
          let code = given[0], let details = given[1]
        else { return nil }
        Self.abort(context, code: code, details: details)
        return nil
      },
      PythonMethod.keywords("abort_with_status", "End the call with a grpc.Status, by raising.") {
        object,
        arguments,
        keywords in
        guard let context = Self.context(object),
          let status = PythonArguments.single(
            arguments,
            keywords,
            of: "abort_with_status",
            "status"
          ),
          let code = PythonReference(owning: Python.attribute(status, "code")),
          let details = PythonReference(owning: Python.attribute(status, "details")),
          let trailing = PythonReference(owning: Python.attribute(status, "trailing_metadata")),
          let metadata = PythonMetadata.parse(trailing.pointer)
        else { return nil }
        context.trailingMetadata = PythonHandle(retaining: trailing.pointer)
        context.wireTrailingMetadata = metadata.entries.isEmpty ? nil : metadata
        Self.abort(context, code: code.pointer, details: details.pointer)
        return nil
      },
      PythonMethod.noArguments("details", "The details that were set, as UTF-8 bytes.") {
        object,
        _ in
        guard let context = Self.context(object) else { return nil }
        return ServicerContextMethods.newReference(context.details)
      },
    ]
  }

  private static func abort(
    _ context: SyncServicerContext,
    code: PythonPointer,
    details: PythonPointer
  ) {
    let isOK =
      PythonCollections.value(context.bindings.statusCodes.pointer, code)
      .flatMap { PythonNumber.int($0) } == 0
    if isOK {
      // As grpcio: OK is no way to fail, so the call ends with UNKNOWN and no details.
      context.bindings.log("abort() called with StatusCode.OK; returning UNKNOWN")
      context.code = context.bindings.unknownCode
      guard let empty = PythonReference(owning: PythonBytes.make([])) else { return }
      context.details = PythonHandle(empty)
    } else {
      guard let encoded = ServicerContextMethods.encoded(details) else { return }
      context.code = PythonHandle(retaining: code)
      context.details = encoded
    }
    context.isAborted = true
    PyErr_SetNone(context.bindings.abortError.pointer)
  }
}
