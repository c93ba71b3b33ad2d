internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineStatistics
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import Glibc
internal import NIOCore
internal import PythonInterop

/// A call log, and the one Python thread that empties it.
final class CallLogReader: Sendable {
  let log: CallLog
  private let parker: Parker

  /// How long the thread lets calls gather: it wakes a few times a second under load, and a line is
  /// there as soon as anybody looks.
  private static let gatheringMilliseconds = 50
  /// A batch keeps the GIL for some milliseconds.
  private static let batch = 500

  init(_ filter: CallLog.Filter, statistics: ServerStatistics) {
    let parker = Parker()
    self.parker = parker
    self.log = CallLog(filter: filter, statistics: statistics) { parker.unpark() }
  }

  /// Waits for calls, without the GIL.
  ///
  /// - Returns: a pair of a list of tuples and the number of dropped calls, as `_engine.pyi` says;
  ///   None when the log is closed and empty; `nil` with an exception set.
  func next() -> PythonPointer? {
    Python.detached { self.wait() }
    let batch = self.log.take(Self.batch)
    if batch.calls.isEmpty, batch.dropped == 0 { return Python.newNone() }
    guard let list = PythonReference(owning: PyList_New(0)) else { return nil }
    let uptime = NIODeadline.now()
    let time = Self.secondsSinceEpoch
    for call in batch.calls {
      let started = time - Double((uptime - call.accepted).nanoseconds) / 1e9
      guard let tuple = PythonReference(owning: Self.tuple(call, started: started)),
        PyList_Append(list.pointer, tuple.pointer) == 0
      else { return nil }
    }
    return PythonCollections.tuple(count: 2) { index in
      index == 0
        ? PythonReference(retaining: list.pointer).take() : PythonNumber.make(batch.dropped)
    }
  }

  private func wait() {
    while true {
      let (count, isClosed) = self.log.content
      if isClosed || count >= Self.batch { return }
      if count == 0 {
        self.parker.park()
      } else {
        _ = self.parker.park(seconds: 0, milliseconds: Self.gatheringMilliseconds)
        return
      }
    }
  }

  private static var secondsSinceEpoch: Double {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }

  private static func tuple(_ call: CallSummary, started: Double) -> PythonPointer? {
    func seconds(_ amount: TimeAmount) -> PythonPointer? {
      PythonNumber.make(Double(amount.nanoseconds) / 1e9)
    }
    return PythonCollections.tuple(count: 12) { index in
      switch index {
      case 0: PythonString.make(call.path)
      case 1: PythonString.make(call.peer.description)
      case 2: PythonNumber.make(call.code.rawValue)
      case 3: PythonNumber.make(started)
      case 4: seconds(call.duration)
      case 5: call.queueWait.map(seconds) ?? Python.newNone()
      case 6: PythonNumber.make(call.traffic.messagesReceived)
      case 7: PythonNumber.make(call.traffic.bytesReceived)
      case 8: PythonNumber.make(call.traffic.messagesSent)
      case 9: PythonNumber.make(call.traffic.bytesSent)
      case 10: PythonNumber.make(call.queries.count)
      default: seconds(call.queries.duration)
      }
    }
  }
}
