import NIOCore
import NIOPosix
import Testing

@testable import GRPCEngineServer

struct AdmissionTests {
  @Test("As many calls are admitted as the limit says, and one more for each release")
  func limit() {
    let admission = Admission(limit: 2)
    for isAdmitted in [true, true, false] { #expect(admission.admit() == isAdmitted) }
    #expect(admission.activeCalls == 2)
    admission.release()
    #expect(admission.admit())
    #expect(!admission.admit())
    #expect(admission.activeCalls == 2 && admission.admittedCalls == 3)
  }

  @Test("Without a limit every call is admitted and counted")
  func noLimit() {
    let admission = Admission(limit: nil)
    for _ in 0..<1000 { #expect(admission.admit()) }
    #expect(admission.activeCalls == 1000 && admission.admittedCalls == 1000)
  }

  @Test("A limit of none admits none")
  func none() {
    let admission = Admission(limit: 0)
    #expect(!admission.admit())
    #expect(admission.activeCalls == 0 && admission.admittedCalls == 0)
  }

  @Test("Threads that admit and release at once never pass the limit, and lose nothing")
  func threads() throws {
    let admission = Admission(limit: 3)
    let pool = NIOThreadPool(numberOfThreads: 4)
    pool.start()
    let group = MultiThreadedEventLoopGroup.singleton
    let overruns = (0..<4).map { _ in
      pool.runIfActive(eventLoop: group.next()) { () -> Int in
        var overruns = 0
        for _ in 0..<20_000 where admission.admit() {
          // Calls that are being refused may be counted for an instant.
          if admission.activeCalls > 3 + 4 { overruns += 1 }
          admission.release()
        }
        return overruns
      }
    }
    for overrun in overruns { #expect(try overrun.wait() == 0) }
    try pool.syncShutdownGracefully()
    #expect(admission.activeCalls == 0)
  }
}
