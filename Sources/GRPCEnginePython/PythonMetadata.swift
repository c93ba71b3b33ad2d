internal import CPythonABI
internal import GRPCEngineWire
internal import PythonInterop

/// Metadata between Python and the wire.
enum PythonMetadata {
  /// A tuple of `(key, value)` items, `bytes` where the key ends in `-bin`, as grpcio gives it.
  /// `nil` with an exception set when there is no room.
  static func make(_ metadata: Metadata, _ bindings: Bindings) -> PythonPointer? {
    let entries = metadata.entries
    return PythonCollections.tuple(count: entries.count) { index in
      let entry = entries[index]
      guard let key = PythonReference(owning: PythonString.make(entry.key)) else { return nil }
      let value: PythonPointer?
      switch entry.value {
      case .ascii(let text): value = PythonString.make(text)
      case .binary(let bytes): value = PythonBytes.make(bytes)
      }
      guard let value = PythonReference(owning: value) else { return nil }
      return py_call2(bindings.metadatum.pointer, key.pointer, value.pointer)
    }
  }

  /// What a servicer gives: pairs of `str` key and `str` or `bytes` value, or `None`.
  ///
  /// - Returns: `nil` with TypeError or ValueError set, which names the item, when it is no
  ///   metadata.
  static func parse(_ object: PythonPointer) -> Metadata? {
    var metadata = Metadata()
    if Python.isNone(object) { return metadata }
    let isComplete = PythonCollections.forEach(object) { item in
      guard PySequence_Size(item) == 2,
        let key = PythonReference(owning: PySequence_GetItem(item, 0)),
        let value = PythonReference(owning: PySequence_GetItem(item, 1))
      else {
        PyErr_Clear()
        PythonError.raiseValueError("metadata must be made of (key, value) pairs")
        return false
      }
      guard let name = Self.text(key.pointer), Metadata.isValidKey(name) else {
        Self.refuse("metadata key", key.pointer, "lower-case letters, digits, '_', '-' and '.'")
        return false
      }
      guard !Metadata.isReserved(name) else {
        PythonError.raiseValueError("metadata key '\(name)' is reserved for gRPC itself")
        return false
      }
      if name.hasSuffix("-bin") {
        guard let bytes = PythonBytes.contents(value.pointer) else {
          PythonError.raiseTypeError("the value of metadata key '\(name)' must be bytes")
          return false
        }
        metadata.append(key: name, value: .binary(Array(bytes)))
        return true
      }
      guard py_is_string(value.pointer) != 0 || py_is_bytes(value.pointer) != 0 else {
        PythonError.raiseTypeError("the value of metadata key '\(name)' must be str or bytes")
        return false
      }
      guard let text = Self.text(value.pointer), Metadata.isValidASCIIValue(text) else {
        Self.refuse(
          "value of metadata key '\(name)'",
          value.pointer,
          "printable ASCII; other bytes need a key that ends in '-bin'"
        )
        return false
      }
      metadata.append(key: name, value: .ascii(text))
      return true
    }
    guard isComplete else { return nil }
    return metadata
  }

  private static func text(_ object: PythonPointer) -> String? {
    if let text = PythonString.value(object) { return text }
    guard let bytes = PythonBytes.contents(object) else { return nil }
    return String(validating: bytes, as: UTF8.self)
  }

  private static func refuse(_ what: String, _ object: PythonPointer, _ allowed: String) {
    guard let text = PythonReference(owning: PyObject_Repr(object)) else { return }
    let given = PythonString.value(text.pointer) ?? "?"
    PythonError.raiseValueError("\(what) \(given) is invalid; allowed: \(allowed)")
  }
}
