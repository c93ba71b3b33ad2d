import GRPCEngineServer
import GRPCEngineTesting
import NIOCore
import Testing

struct HealthBoardTests {
  /// A clock that a test sets.
  private let clock = Monitor(NIODeadline.uptimeNanoseconds(1))

  private func board() -> HealthBoard {
    HealthBoard(now: { [clock] in clock.current })
  }

  private func advance(_ amount: TimeAmount) {
    self.clock.update { $0 = $0 + amount }
  }

  /// What observers were told.
  private func observe(_ board: HealthBoard) -> Monitor<[Readiness.Problem.Cause?]> {
    let causes = Monitor<[Readiness.Problem.Cause?]>([])
    board.onChange { board in causes.update { $0.append(board.problem?.cause) } }
    return causes
  }

  @Test("A server is ready until something speaks against it, and knows itself only")
  func initial() {
    let board = self.board()
    #expect(board.isReady && board.problem == nil)
    #expect(board.statuses == ["": .serving])
    #expect(board.status(of: "a.B") == nil)
  }

  @Test("A service is known by the bytes of its name")
  func names() {
    let board = self.board()
    board.add(["a.K"])
    #expect(board.status(of: "a.K") == .serving)
    #expect(board.status(of: "a.\u{212A}") == nil)
  }

  @Test("A service has its own status while the server is ready, and is NOT_SERVING otherwise")
  func statuses() {
    let board = self.board()
    board.add(["a.B", "c.D"])
    board.set(.notServing, for: "c.D")
    board.add(["c.D"])
    board.set(.unknown, for: "e.F")
    let own: [String: ServingStatus] = [
      "": .serving, "a.B": .serving, "c.D": .notServing, "e.F": .unknown,
    ]
    #expect(board.statuses == own)
    board.setNotReady("a reason")
    #expect(board.statuses == own.mapValues { _ in .notServing })
    #expect(board.problem?.cause == .checks && board.problem?.text == "a reason")
    board.setReady(for: nil)
    #expect(board.statuses == own)
  }

  @Test("The server's own status decides whether it is ready, and nothing of its services")
  func ownStatus() {
    let board = self.board()
    let causes = self.observe(board)
    board.add(["a.B"])
    board.set(.notServing, for: "a.B")
    #expect(board.isReady)
    board.set(.notServing, for: "")
    #expect(board.problem?.cause == .status)
    board.set(.serving, for: "a.B")
    #expect(board.status(of: "a.B") == .serving)
    board.set(.serving, for: "")
    #expect(board.isReady)
    #expect(causes.current == [.status, nil])
  }

  @Test("A lease runs out unless it is renewed, and is noticed by itself")
  func lease() {
    let board = self.board()
    let causes = self.observe(board)
    board.setReady(for: .seconds(5))
    self.advance(.seconds(4))
    board.setReady(for: .seconds(5))
    self.advance(.seconds(4))
    board.look()
    #expect(board.isReady && causes.current.isEmpty)
    self.advance(.seconds(1))
    // A probe sees it at once, who waits for a change at the next look.
    #expect(board.problem?.cause == .lease)
    #expect(board.status(of: "") == .notServing)
    board.look()
    board.look()
    #expect(causes.current == [.lease])
    board.setReady(for: .seconds(5))
    #expect(board.isReady && causes.current == [.lease, nil])
    board.setReady(for: nil)
    self.advance(.hours(1000))
    #expect(board.isReady)
  }

  @Test("A queue that waits for longer than the limit is noticed, and that it moves again too")
  func queue() {
    let board = self.board()
    let causes = self.observe(board)
    let wait = Monitor<TimeAmount?>(nil)
    board.observeQueue(limit: .seconds(2)) { wait.current }
    for seconds: Int64? in [nil, 1, 2] {
      wait.update { $0 = seconds.map { .seconds($0) } }
      board.look()
      #expect(board.isReady)
    }
    wait.update { $0 = .milliseconds(2001) }
    board.look()
    #expect(board.problem?.cause == .queue)
    #expect(board.problem?.text == "a call has waited for longer than 2.0 s in the queue")
    // Longer still is no change.
    wait.update { $0 = .seconds(3) }
    board.look()
    wait.update { $0 = nil }
    board.look()
    #expect(board.isReady && causes.current == [.queue, nil])
  }

  @Test("A shutdown is for ever, and comes before every other reason")
  func shutdown() {
    let board = self.board()
    let causes = self.observe(board)
    board.setNotReady("a reason")
    board.announceShutdown()
    board.setReady(for: nil)
    board.set(.serving, for: "")
    board.add(["late.Service"])
    #expect(board.problem?.cause == .shutdown)
    #expect(board.status(of: "late.Service") == .notServing)
    #expect(causes.current == [.checks, .shutdown])
  }
}
