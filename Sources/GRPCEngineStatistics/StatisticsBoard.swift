internal import Glibc

/// The memory that holds the numbers of a server: a slot for each of its processes.
///
/// A server with one process has it to itself. With worker processes their parent makes a file in
/// memory (`memfd_create`) and each maps it, so that any of them can tell the figures of all, with
/// no messages and without Python. It consists of:
///
/// - 4,096 bytes of header: 64-bit numbers, little-endian, see `Header`;
/// - `slotCount` slots of `slotSize` bytes, see `StatisticsSlot`.
///
/// A slot belongs to one living process at a time. Its counters stay when the process ends, as the
/// sums over all slots must not fall; its gauges are set to zero.
public final class StatisticsBoard: @unchecked Sendable {
  // Safe to share: immutable, and what it points to is atomic. It is never unmapped, as cells do
  // not keep it alive: a process that makes many servers, such as one of tests, pays with addresses.

  /// Indices of the header's numbers.
  public enum Header: Int, Sendable {
    case magic
    case slotCount
    case slotSize
    /// Worker processes that the parent keeps; 0 without a parent.
    case workers
    /// The first of those for which there is a `RestartReason`.
    case restarts = 8
    /// Until when, in milliseconds of CLOCK_MONOTONIC, somebody watches the calls that run.
    case watchedUntil = 16
  }

  /// Why a worker process was replaced; the header counts each.
  public enum RestartReason: String, CaseIterable, Sendable {
    case crash, calls, age, memory, reload, hang, signal
  }

  public struct Malformed: Error {
    public let message: String
    /// Why the system could not map it; `nil` when something is wrong with the board itself.
    public let errno: CInt?

    public init(message: String, errno: CInt? = nil) {
      self.message = message
      self.errno = errno
    }
  }

  public static let magic: UInt64 = 0x3130_4442_4352_5047
  public static let headerSize = 4096
  public static let slotSize = 512 * 1024
  /// More than a machine has processes.
  private static let maximumSlots = 1 << 22

  public let slotCount: Int
  /// Whether other processes may see it.
  public let isShared: Bool
  private let base: UnsafeMutableRawPointer

  /// Makes a board with one slot, for this process only, and ends the process when there is no memory.
  public convenience init() {
    do { try self.init(inMemory: ()) } catch { fatalError(error.message) }
  }

  /// Makes a board with one slot, for this process only.
  public init(inMemory: Void) throws(Malformed) {
    let size = Self.headerSize + Self.slotSize
    // Only the pages that are touched cost memory.
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    guard let base = mmap(nil, size, PROT_READ | PROT_WRITE, flags, -1, 0), base != MAP_FAILED
    else {
      throw Malformed(message: "The server's statistics can't be made", errno: errno)
    }
    self.base = base
    self.slotCount = 1
    self.isShared = false
  }

  deinit {
    guard !self.isShared else { return }
    // The pages go back to the system (madvise(2)); who still counts gets a new one.
    madvise(self.base, Self.headerSize + Self.slotSize, MADV_DONTNEED)
  }

  /// Lays a board out in a file, which is made as long as that takes, and maps it.
  ///
  /// - Parameters:
  ///   - descriptor: an empty file.
  ///   - slotCount: how many processes may have one, at least 1. What nobody has touched of a slot
  ///     costs nothing.
  public convenience init(layingOut descriptor: CInt, slotCount: Int) throws(Malformed) {
    let count = min(max(slotCount, 1), Self.maximumSlots)
    let header = [Self.magic, UInt64(count), UInt64(Self.slotSize)]
    let isWritten = header.withUnsafeBytes {
      ftruncate(descriptor, Self.headerSize + count * Self.slotSize) == 0
        && pwrite(descriptor, $0.baseAddress, $0.count, 0) == $0.count
    }
    guard isWritten else {
      throw Malformed(message: "The statistics board can't be made", errno: errno)
    }
    try self.init(descriptor: descriptor)
  }

  /// Maps the board that a parent process has made.
  ///
  /// - Parameter descriptor: the file; it may be closed afterwards.
  public init(descriptor: CInt) throws(Malformed) {
    var status = stat()
    guard fstat(descriptor, &status) == 0, status.st_size >= Self.headerSize else {
      throw Malformed(message: "File descriptor \(descriptor) is no statistics board")
    }
    let size = Int(status.st_size)
    guard let base = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0),
      base != MAP_FAILED
    else { throw Malformed(message: "The statistics board can't be mapped", errno: errno) }
    self.base = base
    self.isShared = true
    self.slotCount = (size - Self.headerSize) / Self.slotSize
    let header = { (index: Header) in StatisticsCell(base + index.rawValue * 8).value }
    guard header(.magic) == Self.magic, header(.slotSize) == UInt64(Self.slotSize),
      header(.slotCount) == UInt64(self.slotCount)
    else {
      munmap(base, size)
      throw Malformed(message: "The statistics board was made by another version of django_grpc")
    }
  }

  public subscript(_ index: Header) -> StatisticsCell {
    StatisticsCell(self.base + index.rawValue * 8)
  }

  /// How often a worker process was replaced for a reason.
  public subscript(restarts reason: RestartReason) -> StatisticsCell {
    let place = RestartReason.allCases.firstIndex(of: reason) ?? 0
    return StatisticsCell(self.base + (Header.restarts.rawValue + place) * 8)
  }

  /// - Parameter index: from 0 to `slotCount - 1`.
  public func slot(_ index: Int) -> StatisticsSlot {
    precondition((0..<self.slotCount).contains(index))
    return StatisticsSlot(base: self.base + Self.headerSize + index * Self.slotSize)
  }

  public var slots: some Sequence<StatisticsSlot> {
    (0..<self.slotCount).lazy.map { self.slot($0) }
  }
}
