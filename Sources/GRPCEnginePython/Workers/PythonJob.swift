internal import GRPCEngineServer
internal import NIOCore

/// A call on its way to Python. No Python object yet: those are made where the GIL is held.
struct PythonJob: Sendable {
  let call: Call
  let handler: PythonMethodHandler
  /// Since when it waits for Python.
  var queued: NIODeadline { self.call.dispatchTime }

  /// Whether its peer can keep it waiting in the middle.
  var isStream: Bool { self.handler.isStream }
}
