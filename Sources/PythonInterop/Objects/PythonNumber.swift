internal import CPythonABI

/// `int` and `float`.
package enum PythonNumber {
  package static func make(_ value: Int) -> PythonPointer? { PyLong_FromLong(value) }
  package static func make(_ value: Double) -> PythonPointer? { PyFloat_FromDouble(value) }

  /// The value of an `int`; `nil`, without an exception, when it is none or does not fit.
  package static func int(_ object: PythonPointer) -> Int? {
    let value = PyLong_AsLong(object)
    if value == -1, PyErr_Occurred() != nil {
      PyErr_Clear()
      return nil
    }
    return value
  }

  /// The value of a `float` or `int`; `nil`, without an exception, when it is neither.
  package static func double(_ object: PythonPointer) -> Double? {
    let value = PyFloat_AsDouble(object)
    if value == -1, PyErr_Occurred() != nil {
      PyErr_Clear()
      return nil
    }
    return value
  }
}
