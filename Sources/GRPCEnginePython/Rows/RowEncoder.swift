internal import CPythonABI
internal import GRPCEngineWire
internal import PythonInterop

/// Encodes the rows of a query as messages of one class, by a plan that is made once.
///
/// May be shared by threads: it does not change, but for the Python dicts of its lookups, which the
/// GIL guards.
final class RowEncoder: Sendable {
  let message: RowMessage
  let messageClass: PythonHandle
  let columnCount: Int
  private let names: DateTimeNames

  private init(message: RowMessage, messageClass: PythonHandle, names: DateTimeNames) {
    self.message = message
    self.messageClass = messageClass
    self.columnCount = message.columnCount
    self.names = names
  }

  /// - Returns: a new Python object; `nil` with an exception set when `plan` is no plan.
  static func make(_ arguments: PythonArguments) -> PythonPointer? {
    guard let messageClass = arguments[0], let plan = arguments[1],
      let epoch = arguments[2], let types = EngineTypes.current,
      let message = RowPlan.message(plan), let names = DateTimeNames(epoch: epoch)
    else { return nil }
    return types.rowEncoder.make(
      RowEncoder(
        message: message,
        messageClass: PythonHandle(retaining: messageClass),
        names: names
      )
    )
  }

  static func makeType() -> HeapType<RowEncoder>? {
    HeapType.make(
      name: "django_grpc._engine.RowEncoder",
      documentation: "Encodes the rows of a query as messages of one class.",
      methods: [
        PythonMethod.keywords(
          "fill",
          "Make a message of a class, with the rows as its repeated field."
        ) { object, arguments, keywords in
          guard
            let given = PythonArguments(
              arguments,
              keywords,
              of: "fill",
              "message_class",
              "beginning",
              "number",
              "rows"
            )
          else { return nil }
          return HeapType<RowEncoder>.payload(object)?.fill(given)
        },
        PythonMethod.oneArgument("stream", "Iterate over the rows, each as a message.") {
          object,
          rows in
          guard let encoder = HeapType<RowEncoder>.payload(object), let rows else { return nil }
          return RowIterator.make(encoder, rows: rows)
        },
      ]
    )
  }

  /// Writes one row.
  ///
  /// - Returns: false with an exception set.
  func write(_ row: PythonPointer, into buffer: ProtobufWriter) -> Bool {
    guard py_is_exact_tuple(row) != 0, Int(PyTuple_Size(row)) >= self.columnCount else {
      PythonError.raiseTypeError("a row must be a tuple of \(self.columnCount) values or more")
      return false
    }
    return RowWriter(buffer: buffer, names: self.names).write(self.message, row)
  }

  private func fill(_ arguments: PythonArguments) -> PythonPointer? {
    guard let messageClass = arguments[0], let beginning = arguments[1],
      let numberObject = arguments[2], let rows = arguments[3]
    else { return nil }
    guard let head = PythonBytes.contents(beginning),
      let number = PythonNumber.int(numberObject), (1..<(1 << 29)).contains(number)
    else {
      PythonError.raiseTypeError("fill() needs bytes and the number of a field")
      return nil
    }
    let buffer = ProtobufWriter(capacity: 16 * 1024)
    buffer.write(head)
    let tag = UInt64(number) << 3 | 2
    let isWhole = PythonCollections.forEach(rows) { row in
      let begin = buffer.beginLength(tag: tag)
      guard self.write(row, into: buffer) else { return false }
      buffer.endLength(begin)
      return true
    }
    guard isWhole else { return nil }
    return buffer.withContents {
      SerializedMessage.make($0, PythonHandle(retaining: messageClass))
    }
  }
}
