internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import GRPCEngineWire
internal import NIOCore
internal import PythonInterop

/// Finds the calls whose servicers run for long. With the GIL held only.
///
/// The interpreter may be held, by a servicer in C, while a call becomes overdue and ends: such a
/// call is told of afterwards. While nobody asks for overdue calls, it costs a call a reference.
final class Watchdog {
  private var workers: [ObjectIdentifier: WorkerThread] = [:]
  /// `nil` before somebody has asked.
  private var limit: TimeAmount?
  private var endedUnseen: [(call: Call, runningTime: TimeAmount)] = []
  /// Nobody may ask any more.
  private static let maximumUnseen = 1000

  func enter(_ worker: WorkerThread) { self.workers[ObjectIdentifier(worker)] = worker }
  func leave(_ worker: WorkerThread) { self.workers[ObjectIdentifier(worker)] = nil }

  /// The servicer of a call has returned.
  func ended(_ call: Call, wasReported: Bool) {
    guard let limit = self.limit, !wasReported, let time = Self.overdueTime(call, limit),
      self.endedUnseen.count < Self.maximumUnseen
    else { return }
    self.endedUnseen.append((call, time))
  }

  /// The calls whose servicers run for `limit` or longer, or have done so until they ended, and
  /// that were not told of before.
  ///
  /// - Returns: a list of tuples, as `_engine.pyi` says; `nil` with an exception set.
  func overdue(_ limit: TimeAmount, contexts: some Sequence<AsyncServicerContext>) -> PythonPointer?
  {
    self.limit = limit
    guard let list = PythonReference(owning: PyList_New(0)) else { return nil }
    let unseen = self.endedUnseen
    self.endedUnseen = []
    for (call, time) in unseen {
      guard Self.append(call, time, thread: nil, task: nil, to: list.pointer) else { return nil }
    }
    for worker in self.workers.values where !worker.isReported {
      guard let call = worker.current, let time = Self.overdueTime(call, limit) else { continue }
      worker.isReported = true
      guard Self.append(call, time, thread: worker.systemID, task: nil, to: list.pointer)
      else { return nil }
    }
    for context in contexts where !context.isReported {
      guard let time = Self.overdueTime(context.call, limit) else { continue }
      context.isReported = true
      guard Self.append(context.call, time, thread: nil, task: context.task, to: list.pointer)
      else { return nil }
    }
    return list.take()
  }

  private static func overdueTime(_ call: Call, _ limit: TimeAmount) -> TimeAmount? {
    guard let time = call.runningTime, time >= limit else { return nil }
    return time
  }

  private static func append(
    _ call: Call,
    _ runningTime: TimeAmount,
    thread: UInt64?,
    task: PythonHandle?,
    to list: PythonPointer
  ) -> Bool {
    let now = NIODeadline.now()
    let remaining = call.deadline.map { Double(($0 - now).nanoseconds) / 1e9 }
    let tuple = PythonCollections.tuple(count: 7) { index in
      switch index {
      case 0: PythonString.make(call.head.path)
      case 1: PythonString.make(call.peer.description)
      case 2: PythonNumber.make(Double(runningTime.nanoseconds) / 1e9)
      case 3: remaining.map { PythonNumber.make($0) } ?? Python.newNone()
      case 4: call.code.map { PythonNumber.make($0.rawValue) } ?? Python.newNone()
      case 5: thread.map { PythonNumber.make(Int($0)) } ?? Python.newNone()
      default: ServicerContextMethods.newReference(task)
      }
    }
    guard let tuple = PythonReference(owning: tuple) else { return false }
    return PyList_Append(list, tuple.pointer) == 0
  }
}
