public import NIOCore

/// What waits for a loop of another language, and whether there is one that takes it.
///
/// A loop may end or fail to begin at any time, for want of threads or descriptors, or by what
/// runs on it. What waits then is given back to be refused, and the next call asks for a new loop.
///
/// A value without I/O: whoever owns it guards it, and does what it says. Inlinable, so that it is
/// specialised for its items where they are known.
public struct LoopInbox<Item> {
  @usableFromInline enum State {
    /// No loop, and nobody has asked for one: nothing waits.
    case idle
    /// A loop is to come.
    case asked(Waiting)
    case attached(Waiting)
    /// There will be no loop any more.
    case closed
  }

  @usableFromInline struct Waiting {
    @usableFromInline var items: [Item] = []
    /// Since when there is something, when there is.
    @usableFromInline var since = NIODeadline.uptimeNanoseconds(0)

    /// Items whose call has ended, since they were looked for.
    @usableFromInline var abandoned = 0

    @inlinable init() {}

    @inlinable mutating func append(_ item: Item, _ now: NIODeadline) {
      if self.items.isEmpty { self.since = now }
      self.items.append(item)
    }

    @inlinable mutating func abandoned(_ isAbandoned: (Item) -> Bool) -> [Item] {
      self.abandoned += 1
      guard self.abandoned >= max(16, self.items.count / 2) else { return [] }
      self.abandoned = 0
      var (found, others): ([Item], [Item]) = ([], [])
      for item in self.items {
        if isAbandoned(item) { found.append(item) } else { others.append(item) }
      }
      if !found.isEmpty { self.items = others }
      return found
    }
  }

  /// What an item is about.
  public enum Subject: Sendable {
    /// A call that no loop knows yet: it may ask for one.
    case newCall
    /// A call of the loop that is attached; without that one there is nobody to hear of it.
    case knownCall
  }

  public enum Posted: Equatable, Sendable {
    /// It waits; nothing is to be done.
    case waits
    /// Somebody has to bring a loop, and call `attach` or `failed`.
    case ask
    /// The loop has to be woken.
    case wake
    /// Nobody will take it; a call is to be ended.
    case refused
  }

  @usableFromInline var state = State.idle

  @inlinable public init() {}

  @inlinable public mutating func post(_ item: Item, about subject: Subject, now: NIODeadline)
    -> Posted
  {
    // Taken out, so that the array has one owner and is appended to in place.
    var state = State.idle
    swap(&state, &self.state)
    switch consume state {
    case .idle:
      guard subject == .newCall else { return .refused }
      var waiting = Waiting()
      waiting.append(item, now)
      self.state = .asked(waiting)
      return .ask
    case .asked(var waiting):
      defer { self.state = .asked(waiting) }
      guard subject == .newCall else { return .refused }
      waiting.append(item, now)
      return .waits
    case .attached(var waiting):
      let wasEmpty = waiting.items.isEmpty
      waiting.append(item, now)
      self.state = .attached(waiting)
      return wasEmpty ? .wake : .waits
    case .closed:
      self.state = .closed
      return .refused
    }
  }

  /// A call has ended while it waited for the loop. Those are looked for when they may be half of all, so
  /// that each costs the same however much waits.
  ///
  /// - Parameter isAbandoned: whether an item is one of them.
  /// - Returns: those that were found, which wait no more.
  @inlinable public mutating func abandoned(_ isAbandoned: (Item) -> Bool) -> [Item] {
    switch self.state {
    case .asked(var waiting):
      defer { self.state = .asked(waiting) }
      return waiting.abandoned(isAbandoned)
    case .attached(var waiting):
      defer { self.state = .attached(waiting) }
      return waiting.abandoned(isAbandoned)
    case .idle, .closed:
      return []
    }
  }

  /// A loop takes what waits from now on.
  ///
  /// - Returns: whether it has to be woken for what waits already; `nil` when it is not wanted, as
  ///   there is one or will be none.
  @inlinable public mutating func attach() -> Bool? {
    switch self.state {
    case .idle:
      self.state = .attached(Waiting())
      return false
    case .asked(let waiting):
      self.state = .attached(waiting)
      return !waiting.items.isEmpty
    case .attached, .closed:
      return nil
    }
  }

  /// What the loop is to deal with in this turn.
  @inlinable public mutating func take() -> [Item] {
    guard case .attached(let waiting) = self.state else { return [] }
    var next = Waiting()
    // The next batch is likely as large; growing an array step by step is what costs.
    next.items.reserveCapacity(min(waiting.items.count, 256))
    self.state = .attached(next)
    return waiting.items
  }

  /// The loop that was asked for does not come.
  ///
  /// - Returns: what is to be refused.
  @inlinable public mutating func failed() -> [Item] {
    guard case .asked(let waiting) = self.state else { return [] }
    self.state = .idle
    return waiting.items
  }

  /// The loop that was attached takes no more.
  ///
  /// - Returns: what is to be refused.
  @inlinable public mutating func lost() -> [Item] {
    guard case .attached(let waiting) = self.state else { return [] }
    self.state = .idle
    return waiting.items
  }

  /// No loop is wanted any more.
  ///
  /// - Returns: what is to be refused.
  @inlinable public mutating func close() -> [Item] {
    defer { self.state = .closed }
    switch self.state {
    case .asked(let waiting), .attached(let waiting): return waiting.items
    case .idle, .closed: return []
    }
  }

  @inlinable public var isClosed: Bool {
    if case .closed = self.state { true } else { false }
  }

  /// Since when nothing has been taken of what waits; `nil` when nothing waits.
  @inlinable public var oldest: NIODeadline? {
    switch self.state {
    case .asked(let waiting), .attached(let waiting):
      waiting.items.isEmpty ? nil : waiting.since
    case .idle, .closed:
      nil
    }
  }
}
