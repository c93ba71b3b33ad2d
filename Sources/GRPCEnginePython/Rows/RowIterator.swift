internal import CPythonABI
internal import GRPCEngineWire
internal import PythonInterop

/// The iterator over a query's rows, each as a `SerializedMessage`: what feeds a server stream.
final class RowIterator {
  private let encoder: RowEncoder
  /// What the iteration is over; `nil` once it has begun.
  private var iterable: PythonHandle?
  /// An iterator over tuples; `nil` before the beginning and after the end.
  private var rows: PythonHandle?
  /// Kept from row to row; `nil` while a row is written, as Python code may run meanwhile.
  private var spare: ProtobufWriter?

  private init(_ encoder: RowEncoder, _ iterable: PythonHandle) {
    self.encoder = encoder
    self.iterable = iterable
  }

  /// - Parameter rows: iterated when the first row is asked for: that runs the query.
  static func make(_ encoder: RowEncoder, rows: PythonPointer) -> PythonPointer? {
    EngineTypes.current?.rowIterator.make(RowIterator(encoder, PythonHandle(retaining: rows)))
  }

  static func makeType() -> HeapType<RowIterator>? {
    let iter: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      object.map { py_incref($0) }
      return object
    }
    let next: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      HeapType<RowIterator>.payload(object)?.next()
    }
    return HeapType.make(
      name: "django_grpc._engine.RowIterator",
      documentation: "Iterates over the rows of a query, each as a message.",
      methods: [
        PythonMethod.noArguments("close", "End the iteration, and the query behind it.") {
          object,
          _ in HeapType<RowIterator>.payload(object)?.close()
        }
      ],
      slots: [typeSlot(Py_tp_iter, iter), typeSlot(Py_tp_iternext, next)]
    )
  }

  /// `nil` without an exception ends the iteration.
  private func next() -> PythonPointer? {
    if let iterable = self.iterable {
      self.iterable = nil
      guard let iterator = PythonReference(owning: PyObject_GetIter(iterable.pointer)) else {
        return nil
      }
      self.rows = PythonHandle(iterator)
    }
    guard let rows = self.rows else { return nil }
    guard let row = PythonReference(owning: PyIter_Next(rows.pointer)) else {
      self.rows = nil
      return nil
    }
    let buffer = self.spare ?? ProtobufWriter()
    self.spare = nil
    defer { self.spare = buffer }
    buffer.removeAll()
    guard self.encoder.write(row.pointer, into: buffer) else {
      // As a generator that raised: that was its last.
      self.rows = nil
      return nil
    }
    return buffer.withContents { SerializedMessage.make($0, self.encoder.messageClass) }
  }

  /// Closes the query: its cursor goes with the last reference to its rows, here and now.
  private func close() -> PythonPointer {
    self.iterable = nil
    self.rows = nil
    return Python.newNone()
  }
}
