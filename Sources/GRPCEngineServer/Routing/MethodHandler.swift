/// The four shapes of a method.
package enum CallKind: UInt8, Sendable, CaseIterable {
  case unaryUnary
  case unaryStream
  case streamUnary
  case streamStream

  package init(isRequestStreaming: Bool, isResponseStreaming: Bool) {
    switch (isRequestStreaming, isResponseStreaming) {
    case (false, false): self = .unaryUnary
    case (false, true): self = .unaryStream
    case (true, false): self = .streamUnary
    case (true, true): self = .streamStream
    }
  }

  package var isRequestStreaming: Bool { self == .streamUnary || self == .streamStream }
  package var isResponseStreaming: Bool { self == .unaryStream || self == .streamStream }
}

/// How one method runs: the seam between the engine and a language.
///
/// The engine knows nothing else of a servicer. The seam is made of callbacks, not of `async`
/// functions: a Python handler enqueues the call for a worker thread, a Swift handler may start a
/// task, and neither pays for the other.
package protocol MethodHandler: AnyObject, Sendable {
  /// Whether a call waits for its first message before `start`. True for a method with a single
  /// request: a peer that stalls in the middle of it then costs no worker.
  var startsOnFirstMessage: Bool { get }

  /// Whether its calls count against `maximum_concurrent_rpcs`. The default is that they do.
  var isLimited: Bool { get }

  /// Takes over a call. Called once a call, on its event loop; must not block.
  ///
  /// The handler ends it by `Call.finish` or `Call.respond`, on any thread, and says by
  /// `Call.handlerReturned` when nothing of the servicer runs any more.
  func start(_ call: Call)

  /// A call that `start` was given has ended before `Call.handlerBegins`. Called on any thread. The default
  /// does nothing.
  func abandoned(_ call: Call)
}

extension MethodHandler {
  package var isLimited: Bool { true }
  package func abandoned(_ call: Call) {}
}
