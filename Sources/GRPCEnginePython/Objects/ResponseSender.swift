internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineWire
internal import PythonInterop

/// The third argument of a non-blocking behaviour: called with a response, it sends it, from any
/// thread; called with `None`, it ends the call.
final class ResponseSender {
  private let context: SyncServicerContext

  private init(_ context: SyncServicerContext) { self.context = context }

  static func make(_ context: SyncServicerContext) -> PythonPointer? {
    EngineTypes.current?.responseSender.make(ResponseSender(context))
  }

  static func makeType() -> HeapType<ResponseSender>? {
    let call: @convention(c) (PythonPointer?, PythonPointer?, PythonPointer?) -> PythonPointer? = {
      object,
      arguments,
      keywords in
      guard let sender = HeapType<ResponseSender>.payload(object),
        let response = PythonArguments.single(arguments, keywords, of: "__call__", "response")
      else { return nil }
      if Python.isNone(response) {
        sender.context.finish(.ok)
      } else {
        // Whoever calls is not the call's worker and must not be made to wait for its peer.
        _ = sender.context.send(response, mayWait: false)
      }
      return Python.newNone()
    }
    return HeapType.make(
      name: "django_grpc._engine.ResponseSender",
      documentation: "Sends a response of a non-blocking method, from any thread.",
      methods: [],
      slots: [typeSlot(Py_tp_call, call)]
    )
  }
}
