internal import PythonInterop
internal import Synchronization

/// A Python thread for what users have given to be called. Such code may block, and must then keep
/// nobody from the `ControlThread`, nor new connections from their credentials.
///
/// It is begun when there is something to call for the first time.
final class CallbackThread: Sendable {
  enum Kind: Int, Sendable {
    /// Callbacks of calls that have ended.
    case callbacks
    /// What renews credentials.
    case renewals
  }

  private let kind: Kind
  private let jobs = ControlThread()
  private let control: ControlThread
  private let isAsked = Atomic<Bool>(false)

  init(_ kind: Kind, control: ControlThread) {
    self.kind = kind
    self.control = control
  }

  /// May be called from any thread; never takes the GIL.
  func submit(_ job: ControlThread.Job) {
    self.jobs.submit(job)
    if !self.isAsked.exchange(true, ordering: .relaxed) {
      self.control.submit(.spawnCallbacks(self.kind))
    }
  }

  /// The body of the thread: performs jobs until `stop`. The GIL is held.
  func run(_ perform: (ControlThread.Job) -> Void) { self.jobs.run(perform) }

  /// The thread could not be started: its jobs are performed here, and the next one asks again.
  func spawnFailed(_ perform: (ControlThread.Job) -> Void) {
    self.isAsked.store(false, ordering: .relaxed)
    self.jobs.performPending(perform)
  }

  func stop() { self.jobs.submit(.stop) }
}
