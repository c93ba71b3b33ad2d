internal import GRPCEngineStatistics
internal import NIOCore
internal import Synchronization

/// Tells when a server falls idle, or calm after much. Costs a call nothing but a count and a look at a flag.
final class IdleWatch: Sendable {
  private let slot: StatisticsSlot
  private let calls = Atomic<UInt64>(0)
  private let isWatching = Atomic<Bool>(false)
  /// What `cost` was when the server fell idle last.
  private let seenCost = Atomic<UInt64>(0)
  /// So much of connections that made no call is worth a look: half header blocks, calls of unknown methods, silence. A
  /// hundred probes are not.
  private static let leastCost: UInt64 = 1 << 20
  private static let costOfConnection: UInt64 = 4 << 10
  /// Set before the server starts, and read after that.
  nonisolated(unsafe) var observer: (@Sendable () -> Void)?

  init(slot: StatisticsSlot) { self.slot = slot }

  private var activity: Idleness.Activity {
    Idleness.Activity(
      calls: self.calls.load(ordering: .relaxed),
      openCalls: self.slot[.calls].value,
      connections: self.slot[.connections].value,
      bytes: self.bytes
    )
  }

  private var bytes: UInt64 { self.slot[.bytesReceived].value &+ self.slot[.bytesSent].value }

  /// A call begins. On its event loop.
  func callBegan(on eventLoop: any EventLoop) {
    self.calls.wrappingAdd(1, ordering: .relaxed)
    self.beginWatching(on: eventLoop)
  }

  /// A connection has ended. On its event loop.
  func connectionEnded(on eventLoop: any EventLoop) {
    let seen = self.seenCost.load(ordering: .relaxed)
    if self.cost &- seen >= Self.leastCost { self.beginWatching(on: eventLoop) }
  }

  /// Bytes that may have left memory behind.
  private var cost: UInt64 {
    self.bytes &+ self.slot[.connectionsAccepted].value &* Self.costOfConnection
  }

  private func beginWatching(on eventLoop: any EventLoop) {
    guard !self.isWatching.load(ordering: .relaxed), self.observer != nil,
      !self.isWatching.exchange(true, ordering: .relaxed)
    else { return }
    self.watch(Idleness(self.activity), on: eventLoop)
  }

  private func watch(_ idleness: Idleness, on eventLoop: any EventLoop) {
    eventLoop.assumeIsolated().scheduleTask(in: Idleness.period) {
      var idleness = idleness
      let (hasBegun, looksOn) = idleness.look(self.activity)
      if hasBegun {
        self.seenCost.store(self.cost, ordering: .relaxed)
        self.observer?()
      }
      if looksOn { return self.watch(idleness, on: eventLoop) }
      self.isWatching.store(false, ordering: .relaxed)
      // One may have come that saw the watch.
      if self.slot[.calls].value > 0 { self.beginWatching(on: eventLoop) }
    }
  }
}
