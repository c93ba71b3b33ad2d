internal import CPythonABI

/// An exception, taken from the interpreter or put there.
public struct PythonError: ~Copyable {
  /// The exception instance, with its traceback.
  public let value: PythonReference

  /// Takes the exception that is set; `nil` when none is.
  public static func fetch() -> PythonError? {
    var type: PythonPointer?
    var value: PythonPointer?
    var traceback: PythonPointer?
    PyErr_Fetch(&type, &value, &traceback)
    PyErr_NormalizeException(&type, &value, &traceback)
    if let traceback, let value { PyException_SetTraceback(value, traceback) }
    if let traceback { py_decref(traceback) }
    if let type { py_decref(type) }
    guard let value = PythonReference(owning: value) else { return nil }
    return PythonError(value: value)
  }

  /// `str(error)`, with escapes for lone surrogates; `nil`, without an exception, when it can't be made.
  public var text: String? {
    guard let text = PythonReference(owning: PyObject_Str(self.value.pointer)) else {
      PyErr_Clear()
      return nil
    }
    return PythonString.escaped(text.pointer)
  }

  public func matches(_ type: PythonPointer) -> Bool {
    PyErr_GivenExceptionMatches(self.value.pointer, type) != 0
  }

  /// Sets an exception; the caller then returns `nil` (or -1) to the interpreter.
  public static func raise(_ type: PythonPointer?, _ message: String) {
    // As an object: a message may have a NUL in it, where a C string would end.
    guard let type, let text = PythonReference(owning: PythonString.make(message)) else { return }
    PyErr_SetObject(type, text.pointer)
  }

  /// Raises an exception that exists already.
  public static func raiseAgain(_ error: PythonPointer) {
    guard let type = PythonReference(owning: PyObject_Type(error)) else { return }
    PyErr_SetObject(type.pointer, error)
  }

  /// `ValueError`, `TypeError`, `RuntimeError` and `OSError`.
  public static func raiseValueError(_ message: String) {
    Self.raise(py_value_error(), message)
  }
  public static func raiseTypeError(_ message: String) {
    Self.raise(py_type_error(), message)
  }
  public static func raiseRuntimeError(_ message: String) {
    Self.raise(py_runtime_error(), message)
  }
  /// `OSError(errno, message)`, which Python turns into its subclass for that errno.
  public static func raiseOSError(errno code: CInt, _ message: String) {
    guard let text = PythonReference(owning: PythonString.make(message)),
      let number = PythonReference(owning: PyLong_FromLong(Int(code))),
      let type = py_os_error(),
      let error = PythonReference(owning: py_call2(type, number.pointer, text.pointer))
    else { return }
    PyErr_SetObject(type, error.pointer)
  }

  /// Reports the exception that is set to `sys.unraisablehook`, where nobody could catch it.
  public static func reportUnraisable(_ context: PythonPointer) {
    PyErr_WriteUnraisable(context)
  }
}
