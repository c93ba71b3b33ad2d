internal import CPythonABI
internal import GRPCEngineWire
internal import PythonInterop

/// Writes rows into a buffer. Made for one piece of work, with the GIL held.
struct RowWriter {
  let buffer: ProtobufWriter
  let names: DateTimeNames

  enum Outcome {
    case written
    /// There is no value.
    case absent
    /// The value is none that is encoded as it is.
    case unknown
    /// An exception is set.
    case failed
  }

  /// - Returns: false with an exception set.
  func write(_ message: RowMessage, _ row: PythonPointer) -> Bool {
    if message.oneofCount > 0 { return self.writeWithOneofs(message, row) }
    for field in message.fields where self.write(field, row) == .failed { return false }
    return true
  }

  private func writeWithOneofs(_ message: RowMessage, _ row: PythonPointer) -> Bool {
    var chosen = [RowField?](repeating: nil, count: message.oneofCount)
    for field in message.fields {
      let begin = self.buffer.count
      let outcome = self.write(field, row)
      if outcome == .failed { return false }
      guard let oneof = field.oneof, outcome == .written, self.buffer.count > begin else {
        continue
      }
      if let other = chosen[oneof] { return self.fail(message, oneof, other, field) }
      chosen[oneof] = field
    }
    return true
  }

  private func fail(
    _ message: RowMessage,
    _ oneof: Int,
    _ first: RowField,
    _ second: RowField
  ) -> Bool {
    guard let conflict = message.conflict,
      let index = PythonReference(owning: PythonNumber.make(oneof)),
      let first = PythonReference(owning: PythonNumber.make(Int(first.tag >> 3))),
      let second = PythonReference(owning: PythonNumber.make(Int(second.tag >> 3))),
      let result = PythonReference(
        owning: py_call3(conflict.pointer, index.pointer, first.pointer, second.pointer)
      )
    else { return false }
    _ = consume result
    PythonError.raiseValueError("a oneof has two members")
    return false
  }

  private func write(_ field: RowField, _ row: PythonPointer) -> Outcome {
    guard let value = PyTuple_GetItem(row, Py_ssize_t(field.column)) else { return .failed }
    if Python.isNone(value) { return .absent }
    if let message = field.message {
      let begin = self.buffer.beginLength(tag: field.tag)
      guard self.write(message, row) else { return .failed }
      self.buffer.endLength(begin)
      return .written
    }
    if !field.convertsFirst {
      let outcome = self.writeNatively(field, value)
      if outcome != .unknown { return outcome }
    }
    return self.writeConverted(field, value)
  }

  // MARK: With Python's help

  private func writeConverted(_ field: RowField, _ value: PythonPointer) -> Outcome {
    if let convert = field.convert {
      if let converted = PythonReference(owning: py_call1(convert.pointer, value)) {
        if Python.isNone(converted.pointer) { return .absent }
        let outcome = self.writeNatively(field, converted.pointer)
        if outcome != .unknown { return outcome }
      } else {
        // `encode` meets the same error and says it in the user's terms.
        PyErr_Clear()
      }
    }
    return self.writeEncoded(field, value)
  }

  private func writeEncoded(_ field: RowField, _ value: PythonPointer) -> Outcome {
    guard let encode = field.encode else {
      PythonError.raiseTypeError("this plan has no way to encode '\(Python.typeName(value))'")
      return .failed
    }
    guard let bytes = PythonReference(owning: py_call1(encode.pointer, value)) else {
      return .failed
    }
    guard let contents = PythonBytes.contents(bytes.pointer) else {
      PythonError.raiseTypeError("encode() gave no bytes")
      return .failed
    }
    self.buffer.write(contents)
    if let known = field.known, py_is_exact_string(value) != 0 || py_is_exact_int(value) != 0,
      PyDict_Size(known.pointer) < Self.knownLimit,
      PyDict_SetItem(known.pointer, value, bytes.pointer) != 0
    {
      return .failed
    }
    return contents.isEmpty ? .absent : .written
  }

  /// Values kept by one field; choices are fewer, and what is not choices is not worth it.
  private static var knownLimit: Int { 1024 }

  // MARK: Values that are encoded as they are

  private func writeNatively(_ field: RowField, _ value: PythonPointer) -> Outcome {
    switch field.kind {
    case .string:
      return self.writeString(field, value)
    case .int64:
      guard let number = Self.int(value) else { return .unknown }
      return self.writeVarint(field, UInt64(bitPattern: number))
    case .int32:
      guard let number = Self.int(value), Int32(exactly: number) != nil else { return .unknown }
      return self.writeVarint(field, UInt64(bitPattern: number))
    case .double:
      guard let number = Self.double(value) else { return .unknown }
      guard number.bitPattern != 0 || field.hasPresence else { return .absent }
      self.buffer.writeVarint(field.tag)
      self.buffer.writeFixed(number.bitPattern)
      return .written
    case .bool:
      guard let isTrue = Self.bool(value) else { return .unknown }
      return self.writeVarint(field, isTrue ? 1 : 0)
    case .timestamp:
      return self.writeTimestamp(field, value)
    case .lookup:
      guard let known = field.known, let bytes = PyDict_GetItemWithError(known.pointer, value)
      else {
        // A value that has no hash is no choice.
        PyErr_Clear()
        return .unknown
      }
      guard let contents = PythonBytes.contents(bytes) else { return .unknown }
      self.buffer.write(contents)
      return contents.isEmpty ? .absent : .written
    case .bytes:
      guard py_is_exact_bytes(value) != 0, let contents = PythonBytes.contents(value) else {
        return .unknown
      }
      return self.writeContents(field, contents)
    case .duration:
      return self.writeDuration(field, value)
    case .python, .message:
      return .unknown
    case .uint32, .uint64, .sint32, .sint64, .fixed32, .fixed64, .sfixed32, .sfixed64, .float:
      return self.writeRareNumber(field, value)
    }
  }

  private func writeRareNumber(_ field: RowField, _ value: PythonPointer) -> Outcome {
    switch field.kind {
    case .uint32:
      guard let number = Self.int(value), let small = UInt32(exactly: number) else {
        return .unknown
      }
      return self.writeVarint(field, UInt64(small))
    case .uint64:
      guard let number = Self.unsigned(value) else { return .unknown }
      return self.writeVarint(field, number)
    case .sint32, .sint64:
      guard let number = Self.int(value), field.kind == .sint64 || Int32(exactly: number) != nil
      else { return .unknown }
      return self.writeVarint(field, UInt64(bitPattern: (number << 1) ^ (number >> 63)))
    case .fixed32:
      guard let number = Self.int(value), let small = UInt32(exactly: number) else {
        return .unknown
      }
      return self.writeFixed(field, small)
    case .sfixed32:
      guard let number = Self.int(value), let small = Int32(exactly: number) else {
        return .unknown
      }
      return self.writeFixed(field, UInt32(bitPattern: small))
    case .fixed64:
      guard let number = Self.unsigned(value) else { return .unknown }
      return self.writeFixed(field, number)
    case .sfixed64:
      guard let number = Self.int(value) else { return .unknown }
      return self.writeFixed(field, UInt64(bitPattern: number))
    case .float:
      guard let number = Self.single(value) else { return .unknown }
      return self.writeFixed(field, number.bitPattern)
    default:
      return .unknown
    }
  }

  private func writeVarint(_ field: RowField, _ value: UInt64) -> Outcome {
    guard value != 0 || field.hasPresence else { return .absent }
    self.buffer.writeVarint(field.tag)
    self.buffer.writeVarint(value)
    return .written
  }

  private func writeFixed(_ field: RowField, _ value: UInt32) -> Outcome {
    guard value != 0 || field.hasPresence else { return .absent }
    self.buffer.writeVarint(field.tag)
    self.buffer.writeFixed(value)
    return .written
  }

  private func writeFixed(_ field: RowField, _ value: UInt64) -> Outcome {
    guard value != 0 || field.hasPresence else { return .absent }
    self.buffer.writeVarint(field.tag)
    self.buffer.writeFixed(value)
    return .written
  }

  private func writeString(_ field: RowField, _ value: PythonPointer) -> Outcome {
    guard py_is_exact_string(value) != 0 else { return .unknown }
    var count: Py_ssize_t = 0
    guard let start = PyUnicode_AsUTF8AndSize(value, &count) else {
      // Lone surrogates; `encode` tells of them.
      PyErr_Clear()
      return .unknown
    }
    return self.writeContents(field, UnsafeRawBufferPointer(start: start, count: Int(count)))
  }

  private func writeContents(_ field: RowField, _ contents: UnsafeRawBufferPointer) -> Outcome {
    // In a oneof blank is no value, though the wire could tell it from none.
    if contents.isEmpty, !field.hasPresence || field.oneof != nil { return .absent }
    self.buffer.writeVarint(field.tag)
    self.buffer.writeVarint(UInt64(contents.count))
    self.buffer.write(contents)
    return .written
  }

  // MARK: Dates and times

  private func writeTimestamp(_ field: RowField, _ value: PythonPointer) -> Outcome {
    let type = py_type(value)
    if type == self.names.date {
      guard
        let ordinal = PythonReference(
          owning: py_call_method0(value, self.names.toordinal.pointer)
        ), let day = Self.int(ordinal.pointer)
      else { return .failed }
      return self.writeTime(field, seconds: (day - 719_163) * 86_400, nanos: 0)
    }
    guard type == self.names.datetime else { return .unknown }
    guard
      let delta = PythonReference(
        owning: PyNumber_Subtract(value, self.names.epoch.pointer)
      )
    else {
      // A naive datetime; `encode` knows Django's time zone.
      PyErr_Clear()
      return .unknown
    }
    guard let (seconds, micros) = self.parts(delta.pointer) else { return .failed }
    // The year 1; a zone may have it begin earlier.
    guard seconds >= -62_135_596_800 else { return .unknown }
    // A timedelta's microseconds count forward even before the epoch, as a Timestamp's nanos do.
    return self.writeTime(field, seconds: seconds, nanos: micros * 1000)
  }

  private func writeDuration(_ field: RowField, _ value: PythonPointer) -> Outcome {
    guard py_type(value) == self.names.timedelta else { return .unknown }
    guard var (seconds, micros) = self.parts(value) else { return .failed }
    // 10,000 years, which is all that a Duration may be; `encode` says so.
    guard abs(seconds) < 315_576_000_000 else { return .unknown }
    if seconds < 0, micros != 0 {
      // Both parts of a Duration carry the same sign.
      (seconds, micros) = (seconds + 1, micros - 1_000_000)
    }
    return self.writeTime(field, seconds: seconds, nanos: micros * 1000)
  }

  /// `seconds` and `nanos` are the fields 1 and 2 of both messages.
  private func writeTime(_ field: RowField, seconds: Int64, nanos: Int64) -> Outcome {
    let begin = self.buffer.beginLength(tag: field.tag)
    if seconds != 0 {
      self.buffer.writeVarint(1 << 3 as UInt64)
      self.buffer.writeVarint(seconds)
    }
    if nanos != 0 {
      self.buffer.writeVarint(2 << 3 as UInt64)
      self.buffer.writeVarint(nanos)
    }
    self.buffer.endLength(begin)
    return .written
  }

  /// A timedelta's seconds and microseconds; `nil` with an exception set.
  private func parts(_ delta: PythonPointer) -> (seconds: Int64, micros: Int64)? {
    guard let days = Self.attribute(delta, self.names.days),
      let seconds = Self.attribute(delta, self.names.seconds),
      let micros = Self.attribute(delta, self.names.microseconds)
    else { return nil }
    return (days * 86_400 + seconds, micros)
  }

  private static func attribute(_ object: PythonPointer, _ name: PythonHandle) -> Int64? {
    guard let value = PythonReference(owning: PyObject_GetAttr(object, name.pointer)) else {
      return nil
    }
    return Self.int(value.pointer)
  }

  // MARK: Numbers

  private static func int(_ value: PythonPointer) -> Int64? {
    guard py_is_exact_int(value) != 0 || py_is_bool(value) != 0 else { return nil }
    var overflow: CInt = 0
    let number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return overflow == 0 ? number : nil
  }

  private static func unsigned(_ value: PythonPointer) -> UInt64? {
    guard py_is_exact_int(value) != 0 || py_is_bool(value) != 0 else { return nil }
    let number = PyLong_AsUnsignedLongLong(value)
    if number == .max, PyErr_Occurred() != nil {
      PyErr_Clear()
      return nil
    }
    return number
  }

  private static func double(_ value: PythonPointer) -> Double? {
    if py_is_exact_float(value) != 0 { return PyFloat_AsDouble(value) }
    // What has more digits than a double is refused by `encode`.
    return Self.int(value).flatMap { Double(exactly: $0) }
  }

  private static func single(_ value: PythonPointer) -> Float? {
    guard py_is_exact_float(value) != 0 else {
      return Self.int(value).flatMap { Float(exactly: $0) }
    }
    let number = PyFloat_AsDouble(value)
    let single = Float(number)
    // Too great for it, though not infinite, or too small: `encode` refuses that.
    guard single.isFinite || !number.isFinite, single != 0 || number == 0 else { return nil }
    return single
  }

  /// True and False, or 1 and 0 as some databases return them.
  private static func bool(_ value: PythonPointer) -> Bool? {
    if value == py_true() { return true }
    if value == py_false() { return false }
    switch Self.int(value) {
    case 0: return false
    case 1: return true
    default: return nil
    }
  }
}
