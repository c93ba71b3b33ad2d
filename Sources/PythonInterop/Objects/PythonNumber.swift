internal import CPythonABI

/// `int` and `float`.
public enum PythonNumber {
  public static func make(_ value: Int) -> PythonPointer? { PyLong_FromLong(value) }
  public static func make(_ value: Double) -> PythonPointer? { PyFloat_FromDouble(value) }

  /// The value of an `int`; `nil`, without an exception, when it is none or does not fit.
  public static func int(_ object: PythonPointer) -> Int? {
    let value = PyLong_AsLong(object)
    if value == -1, PyErr_Occurred() != nil {
      PyErr_Clear()
      return nil
    }
    return value
  }

  /// The value of a `float` or `int`; `nil`, without an exception, when it is neither.
  public static func double(_ object: PythonPointer) -> Double? {
    let value = PyFloat_AsDouble(object)
    if value == -1, PyErr_Occurred() != nil {
      PyErr_Clear()
      return nil
    }
    return value
  }
}
