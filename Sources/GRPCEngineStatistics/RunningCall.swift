internal import Synchronization

/// A call that runs, as a process tells others of it while somebody watches.
public struct RunningCall: Hashable, Sendable {
  public enum Stage: UInt8, Sendable {
    /// It waits for its first message or for a worker.
    case waiting
    case running
  }

  public var method: String
  public var peer: String
  public var stage: Stage
  /// When its headers came, in nanoseconds of CLOCK_MONOTONIC.
  public var accepted: UInt64
  /// When it is out of time, likewise; 0 for never.
  public var deadline: UInt64
  /// The system's id of the thread that runs it; 0 when none does, or a loop.
  public var thread: UInt64

  public init(
    method: String,
    peer: String,
    stage: Stage,
    accepted: UInt64,
    deadline: UInt64,
    thread: UInt64
  ) {
    self.method = method
    self.peer = peer
    self.stage = stage
    self.accepted = accepted
    self.deadline = deadline
    self.thread = thread
  }

  static let size = 256
  private static let peerLength = 64
  private static let methodLength = 160

  fileprivate func write(to bytes: UnsafeMutableRawBufferPointer) {
    bytes.storeBytes(of: self.accepted, as: UInt64.self)
    bytes.storeBytes(of: self.deadline, toByteOffset: 8, as: UInt64.self)
    bytes.storeBytes(of: self.thread, toByteOffset: 16, as: UInt64.self)
    bytes.storeBytes(of: self.stage.rawValue, toByteOffset: 24, as: UInt8.self)
    let peer = self.peer.utf8.prefix(Self.peerLength)
    let method = self.method.utf8.prefix(Self.methodLength)
    bytes.storeBytes(of: UInt8(peer.count), toByteOffset: 25, as: UInt8.self)
    bytes.storeBytes(of: UInt8(method.count), toByteOffset: 26, as: UInt8.self)
    UnsafeMutableRawBufferPointer(rebasing: bytes[32..<32 + peer.count]).copyBytes(from: peer)
    UnsafeMutableRawBufferPointer(rebasing: bytes[96..<96 + method.count]).copyBytes(from: method)
  }

  fileprivate init(_ bytes: UnsafeMutableRawBufferPointer) {
    self.accepted = bytes.load(as: UInt64.self)
    self.deadline = bytes.load(fromByteOffset: 8, as: UInt64.self)
    self.thread = bytes.load(fromByteOffset: 16, as: UInt64.self)
    self.stage = Stage(rawValue: bytes[24]) ?? .waiting
    let peerLength = min(Int(bytes[25]), Self.peerLength)
    let methodLength = min(Int(bytes[26]), Self.methodLength)
    self.peer = String(decoding: bytes[32..<32 + peerLength], as: UTF8.self)
    self.method = String(decoding: bytes[96..<96 + methodLength], as: UTF8.self)
  }
}

extension StatisticsSlot {
  /// Replaces the table of running calls; those beyond `maximumCalls` are left out. May be called
  /// from any thread of the slot's process.
  ///
  /// - Returns: false, and the table is as it was, when another thread is about to replace it.
  @discardableResult
  public func publish(_ calls: [RunningCall]) -> Bool {
    let version = self[.callsVersion].value
    // Odd while the table changes: a reader that sees it looks again, and a second writer, whose
    // calls are no fresher than the first one's, leaves it alone.
    guard version.isMultiple(of: 2), self[.callsVersion].replace(version, by: version &+ 1) else {
      return false
    }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    for (index, call) in calls.prefix(Self.maximumCalls).enumerated() {
      call.write(to: self.call(at: index))
    }
    self[.callsListed].set(UInt64(min(calls.count, Self.maximumCalls)))
    self[.callsVersion].publish(version &+ 2)
    return true
  }

  /// The calls that were published last; `nil` when the table was changed meanwhile.
  public var runningCalls: [RunningCall]? {
    let version = self[.callsVersion].acquire()
    guard version.isMultiple(of: 2) else { return nil }
    let count = min(Int(truncatingIfNeeded: self[.callsListed].value), Self.maximumCalls)
    let calls = (0..<max(0, count)).map { RunningCall(self.call(at: $0)) }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return self[.callsVersion].value == version ? calls : nil
  }
}
