import NIOCore
import Synchronization
import Testing

@testable import GRPCEngineWorkers

@Suite("Calls that end in the queue")
struct JobQueueTests {
  final class Fate: Sendable {
    let isAbandoned = Atomic(false)
  }

  struct Call: QueuedCall {
    let id: Int
    let isStream: Bool
    let fate = Fate()
    var accepted: NIODeadline { .uptimeNanoseconds(UInt64(self.id)) }
    var queued: NIODeadline { self.accepted }
    var isAbandoned: Bool { self.fate.isAbandoned.load(ordering: .relaxed) }
  }

  @Test("Of those that have ended no more stay than of others, and some")
  func bounded() {
    var queue = JobQueue<Call>(maxRunningStreams: 1)
    var waiting: [Call] = []
    var found = 0
    for id in 0..<10_000 {
      let call = Call(id: id, isStream: id % 3 == 0)
      queue.append(call)
      guard id % 100 != 0 else {
        waiting.append(call)
        continue
      }
      call.fate.isAbandoned.store(true, ordering: .relaxed)
      let gone = queue.abandoned()
      #expect(!gone.contains { !$0.isAbandoned })
      found += gone.count
      #expect(queue.count <= 2 * waiting.count + 32)
    }
    found += queue.removeAbandoned().count
    #expect(found == 9900)
    #expect(queue.count == waiting.count)
    #expect(queue.removeAll().map(\.id).sorted() == waiting.map(\.id))
  }

  @Test("The oldest that waits is none that has ended")
  func oldest() {
    var queue = JobQueue<Call>(maxRunningStreams: 1)
    let calls = (1...3).map { Call(id: $0, isStream: false) }
    for call in calls { queue.append(call) }
    calls[0].fate.isAbandoned.store(true, ordering: .relaxed)
    let early = queue.abandoned()
    #expect(early.isEmpty)
    let gone = queue.removeAbandoned()
    #expect(gone.map(\.id) == [1])
    #expect(queue.oldest == calls[1].queued)
    #expect(queue.count == 2)
  }

  @Test("Random orders of events lose no call that waits")
  func random() {
    var generator = SystemRandomNumberGenerator()
    for _ in 0..<300 {
      var queue = JobQueue<Call>(maxRunningStreams: 2)
      var (expected, running): (Set<Int>, [Call]) = ([], [])
      var inside: [Call] = []
      for id in 0..<200 {
        switch Int.random(in: 0..<5, using: &generator) {
        case 0, 1:
          let call = Call(id: id, isStream: .random(using: &generator))
          queue.append(call)
          inside.append(call)
          expected.insert(id)
        case 2:
          guard let call = inside.randomElement(using: &generator), !call.isAbandoned else { break }
          call.fate.isAbandoned.store(true, ordering: .relaxed)
          expected.remove(call.id)
          inside.removeAll { $0.id == call.id }
          let gone = queue.abandoned()
          #expect(!gone.contains { !$0.isAbandoned })
        case 3:
          guard let call = queue.popFirst() else { break }
          running.append(call)
          inside.removeAll { $0.id == call.id }
          if !call.isAbandoned { #expect(expected.remove(call.id) != nil) }
        default:
          guard let call = running.popLast() else { break }
          queue.finished(call)
        }
      }
      _ = queue.removeAbandoned()
      #expect(Set(queue.removeAll().map(\.id)) == expected)
    }
  }
}
