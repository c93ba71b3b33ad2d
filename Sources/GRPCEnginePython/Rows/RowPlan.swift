internal import CPythonABI
internal import PythonInterop

/// Reads what `django_grpc.serializers.querysets` has planned.
///
/// A message is `(fields, oneof count, conflict)`; a field is `(kind, number, column, has presence,
/// oneof or -1, convert, converts first, encode, message)`, with None for what it does without.
enum RowPlan {
  /// - Returns: `nil` with an exception set when `plan` is none.
  static func message(_ plan: PythonPointer) -> RowMessage? {
    guard let items = Self.items(plan, count: 3), let oneofCount = PythonNumber.int(items[1]),
      oneofCount >= 0
    else { return Self.refuse() }
    var fields: [RowField] = []
    let isWhole = PythonCollections.forEach(items[0]) { item in
      guard let field = Self.field(item, oneofCount: oneofCount) else { return false }
      fields.append(field)
      return true
    }
    guard isWhole else { return Self.refuse() }
    return RowMessage(
      fields: fields,
      oneofCount: oneofCount,
      conflict: Self.optional(items[2])
    )
  }

  private static func field(_ plan: PythonPointer, oneofCount: Int) -> RowField? {
    guard let items = Self.items(plan, count: 9),
      let kind = PythonString.value(items[0]).flatMap({ RowField.Kind(rawValue: $0) }),
      let number = PythonNumber.int(items[1]), (1..<(1 << 29)).contains(number),
      let column = PythonNumber.int(items[2]), column >= 0,
      let oneof = PythonNumber.int(items[4]), oneof < oneofCount
    else { return Self.refuse() }
    var message: RowMessage?
    var known: PythonHandle?
    if kind == .message {
      message = Self.message(items[8])
      if message == nil { return nil }
    }
    if kind == .lookup {
      guard let dict = PythonReference(owning: PyDict_New()) else { return nil }
      known = PythonHandle(dict)
    }
    return RowField(
      kind: kind,
      number: number,
      column: column,
      hasPresence: Python.isTrue(items[3]),
      oneof: oneof < 0 ? nil : oneof,
      convert: Self.optional(items[5]),
      convertsFirst: Python.isTrue(items[6]),
      encode: Self.optional(items[7]),
      known: known,
      message: message
    )
  }

  /// The items of a tuple, borrowed.
  private static func items(_ tuple: PythonPointer, count: Int) -> [PythonPointer]? {
    guard py_is_exact_tuple(tuple) != 0, Int(PyTuple_Size(tuple)) == count else { return nil }
    return (0..<count).compactMap { PyTuple_GetItem(tuple, Py_ssize_t($0)) }
  }

  private static func optional(_ object: PythonPointer) -> PythonHandle? {
    Python.isNone(object) ? nil : PythonHandle(retaining: object)
  }

  private static func refuse<Result>() -> Result? {
    if PyErr_Occurred() == nil { PythonError.raiseValueError("this is no plan for rows") }
    return nil
  }
}
