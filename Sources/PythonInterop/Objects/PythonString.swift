internal import CPythonABI

/// `str`.
public enum PythonString {
  public static func make(_ text: String) -> PythonPointer? {
    var text = text
    return text.withUTF8 { buffer in
      buffer.withMemoryRebound(to: CChar.self) {
        PyUnicode_FromStringAndSize($0.baseAddress, Py_ssize_t($0.count))
      }
    }
  }

  /// The text of a `str`; `nil`, without an exception, when it is none or has lone surrogates.
  public static func value(_ object: PythonPointer) -> String? {
    guard py_is_string(object) != 0 else { return nil }
    var count: Py_ssize_t = 0
    guard let start = PyUnicode_AsUTF8AndSize(object, &count) else {
      PyErr_Clear()
      return nil
    }
    let bytes = UnsafeRawBufferPointer(start: start, count: Int(count))
    return String(decoding: bytes, as: UTF8.self)
  }

  /// The text of a `str` with escapes for its lone surrogates; `nil`, without an exception, when it is
  /// none.
  public static func escaped(_ object: PythonPointer) -> String? {
    if let text = Self.value(object) { return text }
    guard py_is_string(object) != 0,
      let bytes = PythonReference(
        owning: PyUnicode_AsEncodedString(object, "utf-8", "backslashreplace")
      )
    else {
      PyErr_Clear()
      return nil
    }
    return PythonBytes.contents(bytes.pointer).map { String(decoding: $0, as: UTF8.self) }
  }

  /// An interned `str` that lives as long as the interpreter: for names looked up on every call.
  public static func intern(_ text: StaticString) -> PythonHandle? {
    let start = UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
    guard let object = PyUnicode_InternFromString(start) else { return nil }
    return PythonHandle(PythonReference(owning: object))
  }
}
