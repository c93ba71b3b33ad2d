import GRPCEngineLocks
import Glibc
import Testing

@Suite struct LockedTests {
  private struct Refused: Error {}

  @Test("Threads change the value one after the other")
  func oneAtATime() async {
    let counter = Locked(0)
    await withTaskGroup { group in
      for _ in 0..<8 {
        group.addTask {
          for _ in 0..<10_000 { counter.withLock { $0 += 1 } }
        }
      }
    }
    #expect(counter.withLock { $0 } == 80_000)
  }

  @Test("What throws gives the lock back")
  func errors() {
    let value = Locked(1)
    #expect(throws: Refused.self) {
      try value.withLock { value throws(Refused) in
        value = 2
        throw Refused()
      }
    }
    #expect(value.withLockIfAvailable { $0 } == 2)
  }

  @Test("Who must not wait is told that another thread has it")
  func unavailable() {
    let value = Locked(1)
    let thread = Unmanaged.passRetained(value).toOpaque()
    value.lock()
    // Another thread: on this one trylock would be refused as well, but for another reason.
    var seen = pthread_t()
    let code = pthread_create(
      &seen,
      nil,
      { argument in
        guard let argument else { return nil }
        let value = Unmanaged<Locked<Int>>.fromOpaque(argument).takeRetainedValue()
        let found = value.withLockIfAvailable { $0 }
        return found == nil ? nil : UnsafeMutableRawPointer(bitPattern: 1)
      },
      thread
    )
    #expect(code == 0)
    var outcome: UnsafeMutableRawPointer?
    pthread_join(seen, &outcome)
    #expect(outcome == nil)
    value.unlock()
    #expect(value.withLockIfAvailable { $0 } == 1)
  }
}
