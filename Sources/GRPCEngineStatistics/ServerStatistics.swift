internal import GRPCEngineLocks
internal import Glibc

/// The numbers of the server in this process: its slot on a board.
public final class ServerStatistics: Sendable {
  public let board: StatisticsBoard
  public let slot: StatisticsSlot
  /// Calls of methods that nobody registered.
  public let otherMethods: MethodStatistics
  private let methodsLock = Locked(())

  /// Takes a slot on a board; its counters go on where the process before has left them.
  ///
  /// - Parameter index: a slot that no living process has, from 0 to `board.slotCount - 1`.
  public init(board: StatisticsBoard = StatisticsBoard(), slot index: Int = 0) {
    self.board = board
    self.slot = board.slot(index)
    self.slot.clearGauges()
    self.otherMethods = Self.find(MethodStatistics.other, kind: 0, in: self.slot)
  }

  /// Says that this process has the slot; once it will fork no more.
  public func begin() {
    self.slot[.started].set(UInt64(max(0, time(nil))) * 1000)
    self.slot[.heartbeat].set(Self.now)
    self.slot[.process].set(UInt64(getpid()))
  }

  /// The numbers of a method, made when there are none.
  public func method(_ path: String, kind: UInt8) -> MethodStatistics {
    self.methodsLock.withLock { _ in Self.find(path, kind: kind, in: self.slot) }
  }

  private static func find(_ path: String, kind: UInt8, in slot: StatisticsSlot) -> MethodStatistics
  {
    let name = String(decoding: path.utf8.prefix(MethodStatistics.maximumNameLength), as: UTF8.self)
    for index in 0..<StatisticsSlot.maximumMethods {
      let record = slot.method(at: index)
      if !record.isTaken {
        record.take(name, kind: kind)
        return record
      }
      if record.name == name { return record }
    }
    // There are more methods than records: the rest share the first one.
    return slot.method(at: 0)
  }

  /// Milliseconds of CLOCK_MONOTONIC, which all processes share.
  public static var now: UInt64 { self.nanoseconds / 1_000_000 }

  /// Nanoseconds of it, as `NIODeadline` counts them.
  public static var nanoseconds: UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}
