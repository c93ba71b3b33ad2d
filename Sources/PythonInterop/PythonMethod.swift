public import CPythonABI

/// A method of an object or a function of the module, as Python's tables have it.
public enum PythonMethod {
  public typealias Function = @convention(c) (PythonPointer?, PythonPointer?) -> PythonPointer?
  public typealias KeywordFunction =
    @convention(c) (PythonPointer?, PythonPointer?, PythonPointer?) -> PythonPointer?

  /// `name()`; the second parameter is always nil.
  public static func noArguments(
    _ name: StaticString,
    _ documentation: StaticString,
    _ function: @escaping Function
  ) -> PyMethodDef {
    Self.definition(name, documentation, function, METH_NOARGS)
  }

  /// `name(argument)`, positional only.
  public static func oneArgument(
    _ name: StaticString,
    _ documentation: StaticString,
    _ function: @escaping Function
  ) -> PyMethodDef {
    Self.definition(name, documentation, function, METH_O)
  }

  /// `name(a, b=…)`; the parameters are `self`, the tuple and the dict or nil: see
  /// `PythonArguments`.
  public static func keywords(
    _ name: StaticString,
    _ documentation: StaticString,
    _ function: @escaping KeywordFunction
  ) -> PyMethodDef {
    // CPython casts it back when METH_KEYWORDS is set.
    let plain = unsafeBitCast(function, to: Function.self)
    return Self.definition(name, documentation, plain, METH_VARARGS | METH_KEYWORDS)
  }

  private static func definition(
    _ name: StaticString,
    _ documentation: StaticString,
    _ function: @escaping Function,
    _ flags: CInt
  ) -> PyMethodDef {
    PyMethodDef(
      ml_name: UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self),
      ml_meth: function,
      ml_flags: flags,
      ml_doc: UnsafeRawPointer(documentation.utf8Start).assumingMemoryBound(to: CChar.self)
    )
  }
}

/// The arguments of a call, by position or by name.
public struct PythonArguments {
  private let tuple: PythonPointer?
  private let keywords: PythonPointer?
  private let names: [String]

  /// - Parameter names: the parameters, in order.
  public init(_ tuple: PythonPointer?, _ keywords: PythonPointer?, _ names: String...) {
    self.tuple = tuple
    self.keywords = keywords
    self.names = names
  }

  /// The argument at `index`, borrowed; `nil`, without an exception, when it is missing.
  public func optional(_ index: Int) -> PythonPointer? {
    if let tuple = self.tuple, index < Int(PyTuple_Size(tuple)) {
      return PyTuple_GetItem(tuple, Py_ssize_t(index))
    }
    guard let keywords = self.keywords else { return nil }
    return PyDict_GetItemString(keywords, self.names[index])
  }

  /// The argument at `index`, borrowed; `nil` with TypeError set when it is missing.
  public subscript(index: Int) -> PythonPointer? {
    if let value = self.optional(index) { return value }
    PythonError.raiseTypeError("missing required argument: '\(self.names[index])'")
    return nil
  }

  /// Whether there are neither too many arguments nor unknown ones; sets TypeError when there are.
  public func areKnown() -> Bool {
    var given = self.tuple.map { Int(PyTuple_Size($0)) } ?? 0
    if let keywords = self.keywords {
      var known = 0
      for name in self.names where PyDict_GetItemString(keywords, name) != nil { known += 1 }
      guard known == Int(PyDict_Size(keywords)) else {
        PythonError.raiseTypeError("unexpected keyword argument (known: \(self.names))")
        return false
      }
      given += known
    }
    guard given <= self.names.count else {
      PythonError.raiseTypeError("takes at most \(self.names.count) arguments (\(given) given)")
      return false
    }
    return true
  }
}
