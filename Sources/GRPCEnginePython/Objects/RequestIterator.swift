internal import CPythonABI
internal import GRPCEngineServer
internal import PythonInterop

/// The iterator over a call's requests, which a servicer of a streaming request gets.
final class RequestIterator {
  private let context: SyncServicerContext

  private init(_ context: SyncServicerContext) { self.context = context }

  static func make(_ context: SyncServicerContext) -> PythonPointer? {
    EngineTypes.current?.requestIterator.make(RequestIterator(context))
  }

  static func makeType() -> HeapType<RequestIterator>? {
    let iter: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      object.map { py_incref($0) }
      return object
    }
    let next: @convention(c) (PythonPointer?) -> PythonPointer? = { object in
      HeapType<RequestIterator>.payload(object)?.next()
    }
    return HeapType.make(
      name: "django_grpc._engine.RequestIterator",
      documentation: "Iterates over the requests of a call; waits for each without the GIL.",
      methods: [],
      slots: [typeSlot(Py_tp_iter, iter), typeSlot(Py_tp_iternext, next)]
    )
  }

  /// `nil` without an exception ends the iteration.
  private func next() -> PythonPointer? {
    switch self.context.nextRequest() {
    case .message(let request):
      return request.take()
    case .end:
      return nil
    case .invalid:
      return nil
    case .terminated(let termination):
      if termination == .answered { return nil }
      // As grpcio: the peer gave up, or its time did.
      PyErr_SetNone(self.context.bindings.rpcError.pointer)
      return nil
    }
  }
}
