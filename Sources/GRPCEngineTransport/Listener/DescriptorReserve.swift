internal import CGRPCEngineSockets
internal import Glibc
internal import Synchronization

/// How many file descriptors this process may open, and how many of them connections leave alone.
///
/// Servicers open files and connections to databases. A crowd of clients, or some that stall, must
/// not take the last descriptor from them, so accepting stops some before the limit.
package struct DescriptorReserve: Equatable, Sendable {
  /// `RLIMIT_NOFILE` (getrlimit(2)).
  package let limit: Int
  /// How many of these are left to everything else: a twentieth, 16 at least, but never more than
  /// half.
  package var size: Int { min(max(16, self.limit / 20), self.limit / 2) }

  package init(limit: Int) { self.limit = limit }

  /// The limit of this process as it is now: it may be changed while it runs (prlimit(1)).
  package static var current: DescriptorReserve {
    let limit = grpc_engine_descriptor_limit()
    return DescriptorReserve(limit: limit < 0 ? .max : Int(clamping: limit))
  }

  /// Whether all but the reserve is taken.
  ///
  /// - Parameters:
  ///   - lowestFree: the lowest descriptor that is not open; `nil` when none may be opened.
  ///   - isForOperators: whether half of the reserve may be had.
  package func isReached(lowestFree: Int?, isForOperators: Bool = false) -> Bool {
    let size = isForOperators ? self.size / 2 : self.size
    // A new descriptor is the lowest that is free (open(2)), so all those below it are taken.
    return lowestFree.map { $0 >= self.limit - size } ?? true
  }

  /// What was found last; negative for none.
  private static let lastSeen = Atomic(0)

  /// Opens one to see which it is; while a server starts it says what was found before.
  static var lowestFree: Int? {
    let seen = EventLoopResources.unlessAsking {
      let descriptor = grpc_engine_open_descriptor()
      if descriptor >= 0 { close(descriptor) }
      return Int(descriptor)
    }
    if let seen { Self.lastSeen.store(seen, ordering: .relaxed) }
    let descriptor = seen ?? Self.lastSeen.load(ordering: .relaxed)
    return descriptor >= 0 ? descriptor : nil
  }
}
