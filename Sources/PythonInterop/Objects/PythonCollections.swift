internal import CPythonABI

/// `tuple`, `dict` and whatever can be iterated.
public enum PythonCollections {
  /// A tuple of new references; `nil` with an exception set when an item is missing.
  public static func tuple(count: Int, _ item: (Int) -> PythonPointer?) -> PythonPointer? {
    guard let tuple = PythonReference(owning: PyTuple_New(Py_ssize_t(count))) else { return nil }
    for index in 0..<count {
      guard let value = item(index) else { return nil }
      // Steals the reference, also when it fails.
      guard PyTuple_SetItem(tuple.pointer, Py_ssize_t(index), value) == 0 else { return nil }
    }
    return tuple.take()
  }

  /// Calls `body` with each item, borrowed, until it returns false.
  ///
  /// - Returns: whether the end was reached; when not, an exception may be set.
  public static func forEach(
    _ iterable: PythonPointer,
    _ body: (PythonPointer) -> Bool
  ) -> Bool {
    guard let iterator = PythonReference(owning: PyObject_GetIter(iterable)) else { return false }
    while let item = PythonReference(owning: PyIter_Next(iterator.pointer)) {
      guard body(item.pointer) else { return false }
    }
    return PyErr_Occurred() == nil
  }

  /// `dict[key]`, borrowed; `nil` when it is missing.
  public static func value(_ dict: PythonPointer, _ key: PythonPointer) -> PythonPointer? {
    guard let value = PyDict_GetItemWithError(dict, key) else {
      PyErr_Clear()
      return nil
    }
    return value
  }

  public static func value(_ dict: PythonPointer, _ key: String) -> PythonPointer? {
    PyDict_GetItemString(dict, key)
  }
}
