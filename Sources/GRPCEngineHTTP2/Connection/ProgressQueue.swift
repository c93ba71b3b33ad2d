/// What is to be told of what was sent, in order. It keeps its memory: there is something with every call.
struct ProgressQueue {
  private static let kept = 64

  private var all: ContiguousArray<HTTP2Connection.Progress> = []
  private var next = 0

  mutating func append(_ progress: HTTP2Connection.Progress) { self.all.append(progress) }

  mutating func popFirst() -> HTTP2Connection.Progress? {
    guard self.next < self.all.count else { return nil }
    defer {
      self.next += 1
      if self.next == self.all.count {
        self.all.removeAll(keepingCapacity: self.all.count <= Self.kept)
        self.next = 0
      }
    }
    return self.all[self.next]
  }
}
