internal import GRPCEngineLocks
internal import Glibc
internal import NIOCore

/// Knows whether a server may take one more connection's descriptor, and says so when it may not.
package final class DescriptorWatch: Sendable {
  private struct State {
    var observer: (@Sendable (String) -> Void)?
    var notices = NoticeLimit()
  }

  private let state = Locked(State())

  package init() {}

  /// Sets who hears, in a sentence for the operator, that accepting pauses.
  ///
  /// - Parameter observer: called on any thread, at most once a second; must not block.
  package func observe(_ observer: @escaping @Sendable (String) -> Void) {
    self.state.withLock { $0.observer = observer }
  }

  /// Whether another connection may be accepted. If not, accepting pauses.
  func mayOpen(isForOperators: Bool = false) -> Bool {
    let reserve = DescriptorReserve.current
    let lowestFree = DescriptorReserve.lowestFree
    guard reserve.isReached(lowestFree: lowestFree, isForOperators: isForOperators) else {
      return true
    }
    self.tell(
      "Accepting connections pauses: all but \(reserve.size) of the \(reserve.limit) file "
        + "descriptors that this process may open (RLIMIT_NOFILE) are in use, and these are kept "
        + "for servicers. Connections that are open are served on. Raise the limit with "
        + "'ulimit -n', or LimitNOFILE= in a systemd unit."
    )
    return false
  }

  /// A connection could not be accepted, or was lost on its way from another process.
  func failed(_ code: CInt) {
    let reason =
      code == ENOSPC
      ? "too many file descriptors are watched (fs.epoll.max_user_watches)"
      : String(cString: strerror(code))
    let limit = DescriptorReserve.current.limit
    self.tell(
      code == EMFILE
        ? "Accepting connections pauses: all \(limit) file descriptors that this process may open "
          + "(RLIMIT_NOFILE) are in use. Raise the limit with 'ulimit -n', or LimitNOFILE= in a "
          + "systemd unit."
        : "Accepting connections pauses: \(reason). Connections that are open are served on."
    )
  }

  private func tell(_ sentence: @autoclosure () -> String) {
    let observer = self.state.withLock { state in
      state.notices.admit(at: .now()) ? state.observer : nil
    }
    observer?(sentence())
  }
}
