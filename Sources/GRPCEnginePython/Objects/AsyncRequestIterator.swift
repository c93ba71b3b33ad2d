internal import CPythonABI
internal import PythonInterop

/// The asynchronous iterator over a call's requests, which an async servicer of a streaming request
/// gets.
final class AsyncRequestIterator {
  private let context: AsyncServicerContext

  private init(_ context: AsyncServicerContext) { self.context = context }

  static func make(_ context: AsyncServicerContext) -> PythonPointer? {
    EngineTypes.current?.asyncRequestIterator.make(AsyncRequestIterator(context))
  }

  static func makeType() -> HeapType<AsyncRequestIterator>? {
    let iter: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      object.map { py_incref($0) }
      return object
    }
    let next: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      HeapType<AsyncRequestIterator>.payload(object)?.next()
    }
    return HeapType.make(
      name: "django_grpc._engine.AsyncRequestIterator",
      documentation: "Iterates over the requests of a call, on its asyncio loop.",
      methods: [],
      slots: [typeSlot(Py_am_aiter, iter), typeSlot(Py_am_anext, next)]
    )
  }

  /// An awaitable; a request that is there already costs no coroutine.
  private func next() -> PythonPointer? {
    switch self.context.receive() {
    case .message(let request):
      return Ready.make(request)
    case .end:
      PyErr_SetNone(py_stop_async_iteration())
      return nil
    case .raised:
      return nil
    case .pending:
      guard let object = self.context.object else {
        self.context.raiseEnded()
        return nil
      }
      return py_call1(self.context.bindings.coroutines.nextRequest.pointer, object.pointer)
    }
  }
}

/// An awaitable that is done: `await` on it gives its value at once.
final class Ready {
  private var value: PythonHandle?

  private init(_ value: PythonHandle) { self.value = value }

  static func make(_ value: consuming PythonReference) -> PythonPointer? {
    EngineTypes.current?.ready.make(Ready(PythonHandle(value)))
  }

  static func makeType() -> HeapType<Ready>? {
    let itself: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      object.map { py_incref($0) }
      return object
    }
    let next: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      guard let value = HeapType<Ready>.payload(object)?.take(),
        let type = py_stop_iteration(),
        let stop = PythonReference(owning: py_call1(type, value.pointer))
      else { return nil }
      PyErr_SetObject(type, stop.pointer)
      return nil
    }
    let send:
      @convention(c) (
        PythonPointer?, PythonPointer?, UnsafeMutablePointer<PythonPointer?>?
      ) -> CInt = { object, _, result in
        guard let value = HeapType<Ready>.payload(object)?.take(), let result else {
          return PYGEN_ERROR.rawValue
        }
        py_incref(value.pointer)
        result.pointee = value.pointer
        return PYGEN_RETURN.rawValue
      }
    return HeapType.make(
      name: "django_grpc._engine.Ready",
      documentation: "An awaitable that is done.",
      methods: [],
      slots: [
        typeSlot(Py_am_await, itself), typeSlot(Py_tp_iter, itself),
        typeSlot(Py_tp_iternext, next), typeSlot(Py_am_send, send),
      ]
    )
  }

  /// `nil` with RuntimeError set when it was awaited before.
  private func take() -> PythonHandle? {
    defer { self.value = nil }
    if self.value == nil { PythonError.raiseRuntimeError("cannot await this twice") }
    return self.value
  }
}
