internal import CPythonABI
package import PythonInterop

/// The module `django_grpc._engine`, for whichever front makes it: an extension module that
/// CPython loads, or an executable that embeds CPython.
package enum EngineModule {
  /// - Returns: the module, a new reference; `nil` with an exception set.
  package static func make() -> PythonPointer? {
    let functions = Self.functions
    // Python keeps pointing to both tables, so they are never freed.
    let table = UnsafeMutablePointer<PyMethodDef>.allocate(capacity: functions.count + 1)
    table.initialize(from: functions, count: functions.count)
    (table + functions.count).initialize(to: PyMethodDef())
    let definition = UnsafeMutablePointer<PyModuleDef>.allocate(capacity: 1)
    definition.initialize(to: PyModuleDef())
    definition.pointee.m_name = Self.constant("django_grpc._engine")
    definition.pointee.m_doc = Self.constant("The gRPC server of django-grpc, in Swift.")
    definition.pointee.m_size = -1
    definition.pointee.m_methods = table
    guard
      let module = PythonReference(
        owning: PyModule_Create2(definition, CInt(PYTHON_ABI_VERSION))
      ), EngineTypes.add(to: module.pointer)
    else { return nil }
    return module.take()
  }

  private static func constant(_ text: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
  }

  private static var functions: [PyMethodDef] {
    [
      PythonMethod.keywords(
        "configure",
        "Give the engine the Python objects that it needs; called once, at import."
      ) { module, arguments, keywords in
        guard let module,
          let values = PythonArguments.single(arguments, keywords, of: "configure", "bindings"),
          let bindings = Bindings(values, module: module)
        else { return nil }
        Bindings.configure(bindings)
        return Python.newNone()
      },
      PythonMethod.oneArgument("make_server", "Make a server of a dict of settings.") {
        _,
        values in values.flatMap { PythonServer.make($0) }
      },
      PythonMethod.keywords(
        "make_server_credentials",
        "Make credentials of PEM bytes."
      ) { _, arguments, keywords in
        PythonArguments(
          arguments,
          keywords,
          of: "make_server_credentials",
          "key_pairs",
          "root_certificates",
          "require_client_auth",
          "minimum_version",
          "cipher_suites"
        )
        .flatMap { CredentialsBox.make($0) }
      },
      PythonMethod.oneArgument("make_local_credentials", "Make credentials for this machine.") {
        _,
        isUnix in isUnix.flatMap { CredentialsBox.makeLocal($0) }
      },
      PythonMethod.oneArgument(
        "certificate_validity",
        "Tell from when to when the first certificate of PEM bytes is valid, in seconds since 1970."
      ) { _, chain in chain.flatMap { CredentialsBox.validity($0) } },
      PythonMethod.keywords(
        "make_row_encoder",
        "Make an encoder of rows by a plan."
      ) { _, arguments, keywords in
        PythonArguments(
          arguments,
          keywords,
          of: "make_row_encoder",
          "message_class",
          "plan",
          "epoch"
        )
        .flatMap { RowEncoder.make($0) }
      },
      PythonMethod.keywords(
        "bind",
        "Listen on an address; return the descriptors of its sockets."
      ) { _, arguments, keywords in
        PythonArguments(arguments, keywords, of: "bind", "address", "reuse_port")
          .flatMap { ListeningSockets.bind($0) }
      },
      PythonMethod.keywords(
        "make_statistics_board",
        "Lay out a board in a file, or map one."
      ) { _, arguments, keywords in
        PythonArguments(arguments, keywords, of: "make_statistics_board", "descriptor", "slots")
          .flatMap { StatisticsBoardType.makeBoard($0) }
      },
      PythonMethod.oneArgument("check_metadata", "Refuse what a servicer can't send.") {
        _,
        items in
        guard let items, PythonMetadata.parse(items) != nil else { return nil }
        return Python.newNone()
      },
      PythonMethod.oneArgument("without_collection", "Call while no garbage is collected.") {
        _,
        function in
        guard let function else { return nil }
        let wasEnabled = PyGC_Disable() != 0
        defer { if wasEnabled { PyGC_Enable() } }
        return PyObject_CallNoArgs(function)
      },
      PythonMethod.oneArgument("_run_call", "Run a call, in the Python context of the caller.") {
        _,
        object in
        guard let object,
          let context = EngineTypes.current?.servicerContext.checkedPayload(object)
        else { return nil }
        // A registered method alone sees to what it uses, and does it at less cost. But what has
        // failed is logged, and a log may be written to a database.
        let surroundings = context.server.surroundings
        let isAlone = context.method?.isAlone ?? false
        if !isAlone { surroundings?.perform(.enter) }
        defer {
          if !isAlone || !context.hasSucceeded { surroundings?.perform(.leave) }
        }
        CallRunner(context: context, object: object).run()
        return Python.newNone()
      },
    ]
  }
}
