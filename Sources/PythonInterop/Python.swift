internal import CPythonABI

/// The interpreter as a whole.
public enum Python {
  /// Runs `body` without the GIL; for anything that waits. The caller holds the GIL.
  ///
  /// `body` must not touch Python objects.
  public static func detached<Result>(_ body: () -> Result) -> Result {
    let state = PyEval_SaveThread()
    defer { PyEval_RestoreThread(state) }
    return body()
  }

  /// Runs `body` without the GIL, as `detached`, where it may throw.
  public static func detachedThrowing<Result>(_ body: () throws -> Result) throws -> Result {
    let state = PyEval_SaveThread()
    defer { PyEval_RestoreThread(state) }
    return try body()
  }

  public static var none: PythonPointer { py_none() }

  /// A new reference to `None`, as a C function returns it.
  public static func newNone() -> PythonPointer {
    py_incref(py_none())
    return py_none()
  }

  /// A new reference to `True` or `False`.
  public static func newBool(_ value: Bool) -> PythonPointer {
    let object: PythonPointer = value ? py_true() : py_false()
    py_incref(object)
    return object
  }

  public static func isNone(_ object: PythonPointer) -> Bool { object == py_none() }

  /// `object.name`; `nil` with an exception set when it has none.
  public static func attribute(_ object: PythonPointer, _ name: String) -> PythonPointer? {
    PyObject_GetAttrString(object, name)
  }

  /// `object.name`, or `nil`, without an exception, when it is missing or `None`.
  public static func optionalAttribute(
    _ object: PythonPointer,
    _ name: String
  ) -> PythonHandle? {
    guard let value = PyObject_GetAttrString(object, name) else {
      PyErr_Clear()
      return nil
    }
    let reference = PythonReference(owning: value)
    return Python.isNone(reference.pointer) ? nil : PythonHandle(reference)
  }

  /// The name of an object's type, for messages.
  public static func typeName(_ object: PythonPointer) -> String {
    guard let type = PythonReference(owning: PyObject_Type(object)),
      let name = PythonReference(owning: PyObject_GetAttrString(type.pointer, "__name__"))
    else {
      PyErr_Clear()
      return "?"
    }
    return PythonString.value(name.pointer) ?? "?"
  }

  /// Whether `object` is true, as `bool()` has it; false when asking raises.
  public static func isTrue(_ object: PythonPointer) -> Bool {
    let result = PyObject_IsTrue(object)
    if result < 0 { PyErr_Clear() }
    return result == 1
  }
}
