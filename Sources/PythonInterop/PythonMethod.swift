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
  private let function: StaticString
  private let names: [String]

  /// Takes what a function was called with; `nil` with TypeError set when that is too much, given
  /// twice, or nothing that it has.
  ///
  /// - Parameters:
  ///   - function: its name, for what is told of mistakes.
  ///   - names: the parameters, in order.
  public init?(
    _ tuple: PythonPointer?,
    _ keywords: PythonPointer?,
    of function: StaticString,
    _ names: String...
  ) {
    self.tuple = tuple
    self.keywords = keywords
    self.function = function
    self.names = names
    guard self.areKnown() else { return nil }
  }

  /// The argument of a function that takes one, borrowed; `nil` with TypeError set when what it was
  /// called with is not one.
  public static func single(
    _ tuple: PythonPointer?,
    _ keywords: PythonPointer?,
    of function: StaticString,
    _ name: String
  ) -> PythonPointer? {
    PythonArguments(tuple, keywords, of: function, name)?[0]
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
    PythonError.raiseTypeError(
      "\(self.function)() missing required argument: '\(self.names[index])'"
    )
    return nil
  }

  private func areKnown() -> Bool {
    let positional = self.tuple.map { Int(PyTuple_Size($0)) } ?? 0
    guard positional <= self.names.count else {
      PythonError.raiseTypeError(
        "\(self.function)() takes at most \(self.names.count) arguments (\(positional) given)"
      )
      return false
    }
    guard let keywords = self.keywords else { return true }
    var known = 0
    for (index, name) in self.names.enumerated()
    where PyDict_GetItemString(keywords, name) != nil {
      guard index >= positional else {
        PythonError.raiseTypeError(
          "\(self.function)() got multiple values for argument '\(name)'"
        )
        return false
      }
      known += 1
    }
    guard known == Int(PyDict_Size(keywords)) else {
      PythonError.raiseTypeError(
        "\(self.function)() got an unexpected keyword argument (known: \(self.names))"
      )
      return false
    }
    return true
  }
}
