internal import Synchronization

/// Whether calls wait for the threads that answer them: a hint from whoever runs handlers.
///
/// While they do, an answer that leaves half a millisecond later delays nobody by much, and going
/// out together with others it costs much less.
package final class Backlog: Sendable {
  private let hint = Atomic<Bool>(false)

  package init() {}

  /// May be read and set on any thread; it orders nothing.
  package var isWaiting: Bool {
    get { self.hint.load(ordering: .relaxed) }
    set { self.hint.store(newValue, ordering: .relaxed) }
  }
}
