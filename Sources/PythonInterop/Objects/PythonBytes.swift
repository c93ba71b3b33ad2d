internal import CPythonABI

/// `bytes`.
public enum PythonBytes {
  /// A new `bytes`; `nil` with MemoryError set when there is no room.
  public static func make(_ bytes: UnsafeRawBufferPointer) -> PythonPointer? {
    PyBytes_FromStringAndSize(
      bytes.baseAddress?.assumingMemoryBound(to: CChar.self),
      Py_ssize_t(bytes.count)
    )
  }

  public static func make(_ bytes: [UInt8]) -> PythonPointer? {
    bytes.withUnsafeBytes { Self.make($0) }
  }

  /// The contents; valid while the object lives. `nil` when it is no `bytes`.
  public static func contents(_ object: PythonPointer) -> UnsafeRawBufferPointer? {
    guard py_is_bytes(object) != 0 else { return nil }
    var start: UnsafeMutablePointer<CChar>?
    var count: Py_ssize_t = 0
    guard PyBytes_AsStringAndSize(object, &start, &count) == 0 else {
      PyErr_Clear()
      return nil
    }
    return UnsafeRawBufferPointer(start: start, count: Int(count))
  }
}
