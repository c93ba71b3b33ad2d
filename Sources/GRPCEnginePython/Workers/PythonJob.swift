internal import GRPCEngineServer
internal import GRPCEngineWorkers
internal import NIOCore

/// A call on its way to Python. No Python object yet: those are made where the GIL is held.
struct PythonJob: QueuedCall {
  let call: Call
  let handler: PythonMethodHandler

  var isStream: Bool { self.handler.isStream }
  var accepted: NIODeadline { self.call.accepted }
  var queued: NIODeadline { self.call.dispatchTime }
  /// One that was handed over has begun, and goes where the GIL is held: its handler is its own.
  var isAbandoned: Bool { self.call.isAbandoned }
}
