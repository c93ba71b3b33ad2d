internal import CPythonABI
internal import GRPCEngineStatistics
internal import PythonInterop

/// An asyncio loop that takes calls, from `AsyncioBridge.attach` to its end, and what runs on it.
///
/// Touched with the GIL held only.
final class AsyncioLoop {
  private let createTask: PythonHandle
  private let slot: StatisticsSlot
  private var running: [Int: AsyncServicerContext] = [:]

  init(createTask: PythonHandle, slot: StatisticsSlot) {
    self.createTask = createTask
    self.slot = slot
  }

  subscript(id: Int) -> AsyncServicerContext? { self.running[id] }

  var contexts: some Collection<AsyncServicerContext> { self.running.values }

  func insert(_ context: AsyncServicerContext) {
    self.running[context.id] = context
    self.slot[.loopCalls].add()
  }

  /// A call's task has nothing left to do. May be called more than once.
  func remove(_ context: AsyncServicerContext) {
    guard self.running.removeValue(forKey: context.id) != nil else { return }
    self.slot[.loopCalls].subtract()
  }

  func removeAll() -> [AsyncServicerContext] {
    defer { self.running = [:] }
    self.slot[.loopCalls].subtract(self.running.count)
    return Array(self.running.values)
  }

  /// - Parameter variables: what the task begins with of context variables, beside the loop's own.
  /// - Returns: the task of a coroutine, a new reference; `nil` with an exception set.
  func makeTask(
    _ coroutine: PythonPointer,
    _ variables: PythonHandle?,
    _ bindings: CoroutineBindings
  ) -> PythonReference? {
    // A task begins with a copy of the context in which it is made.
    guard let createTask = bindings.carrying(variables, self.createTask) else { return nil }
    return PythonReference(owning: py_call1(createTask.pointer, coroutine))
  }
}
