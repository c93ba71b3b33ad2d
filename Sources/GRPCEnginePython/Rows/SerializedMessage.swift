internal import CPythonABI
internal import PythonInterop

/// A response that is bytes already: what `ServicerContext.serialize` sends as it is.
final class SerializedMessage {
  /// Borrowed by Python for as long as this lives.
  let bytes: PythonReference
  private let messageClass: PythonHandle

  private init(_ bytes: consuming PythonReference, _ messageClass: PythonHandle) {
    self.bytes = bytes
    self.messageClass = messageClass
  }

  /// - Returns: a new Python object; `nil` with an exception set.
  static func make(
    _ contents: UnsafeRawBufferPointer,
    _ messageClass: PythonHandle
  ) -> PythonPointer? {
    guard let bytes = PythonReference(owning: PythonBytes.make(contents)) else { return nil }
    return EngineTypes.current?.serializedMessage.make(SerializedMessage(bytes, messageClass))
  }

  static func makeType() -> HeapType<SerializedMessage>? {
    let repr: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      HeapType<SerializedMessage>.payload(object)?.representation()
    }
    let length: @convention(c) (PythonPointer?) -> Py_ssize_t = { object in
      HeapType<SerializedMessage>.payload(object).map { PyBytes_Size($0.bytes.pointer) } ?? -1
    }
    typealias SetAttribute =
      @convention(c) (PythonPointer?, PythonPointer?, PythonPointer?) -> CInt
    let setAttribute: SetAttribute = { _, name, _ in
      let name = name.flatMap { PythonString.value($0) } ?? "it"
      PythonError.raise(
        py_attribute_error(),
        "This message is serialized already, '\(name)' can't be set any more: give serialize_queryset() "
          + "its value as a keyword argument, or set it on what .message() returns"
      )
      return -1
    }
    return HeapType.make(
      name: "django_grpc._engine.SerializedMessage",
      documentation: "A message that is serialized already; the engine sends it as it is.",
      methods: [
        PythonMethod.noArguments("__bytes__", "Return what is sent.") { object, _ in
          HeapType<SerializedMessage>.payload(object)?.newBytes()
        },
        PythonMethod.noArguments("SerializeToString", "Return what is sent, as a message does.") {
          object,
          _ in HeapType<SerializedMessage>.payload(object)?.newBytes()
        },
        PythonMethod.noArguments("message", "Parse it into a message of its class.") { object, _ in
          HeapType<SerializedMessage>.payload(object)?.parsed()
        },
      ],
      slots: [
        typeSlot(Py_tp_repr, repr),
        typeSlot(Py_sq_length, length),
        typeSlot(Py_tp_setattro, setAttribute),
      ]
    )
  }

  private func newBytes() -> PythonPointer {
    py_incref(self.bytes.pointer)
    return self.bytes.pointer
  }

  private func parsed() -> PythonPointer? {
    guard
      let parse = PythonReference(
        owning: Python.attribute(self.messageClass.pointer, "FromString")
      )
    else { return nil }
    return py_call1(parse.pointer, self.bytes.pointer)
  }

  private func representation() -> PythonPointer? {
    guard
      let name = PythonReference(
        owning: Python.attribute(self.messageClass.pointer, "__name__")
      )
    else { return nil }
    let text = PythonString.value(name.pointer) ?? "?"
    return PythonString.make(
      "<SerializedMessage \(text), \(PyBytes_Size(self.bytes.pointer)) bytes>"
    )
  }
}
