import NIOCore

@testable import GRPCEngineWorkers

struct TestCall: QueuedCall, Hashable {
  var id = 0
  var isStream = false
  var accepted: NIODeadline
  var queued: NIODeadline { self.accepted }
  var isAbandoned: Bool { false }
}
