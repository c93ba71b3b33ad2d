/// The numbers of one method in one process.
///
/// A record is 128 cells: the length of its name, 24 cells of name, its kind, and then what is
/// counted.
public struct MethodStatistics: @unchecked Sendable {
  // Safe to share: a board's memory. The name is written once, before its length is published.

  private enum Index {
    static let length = 0
    static let name = 1
    static let kind = 25
    static let inFlight = 26
    static let started = 27
    static let ended = 28
    static let durations = 48
    static let received = 72
    static let sent = 90
  }

  /// Names that are longer are cut.
  public static let maximumNameLength = 192
  /// gRPC's status codes run from 0 to 16.
  public static let codes = 17
  static let unavailable = 14
  /// What calls of methods that nobody registered are counted under: their names are the peer's,
  /// who must not make records without end.
  public static let other = "other"

  let base: UnsafeMutableRawPointer

  private func cell(_ index: Int) -> StatisticsCell {
    StatisticsCell(self.base + index * StatisticsSlot.cellSize)
  }

  var isTaken: Bool { self.cell(Index.length).acquire() != 0 }

  /// The method's path, `/package.Service/Method`, or `other`.
  public var name: String {
    let length = min(Int(self.cell(Index.length).acquire()), Self.maximumNameLength)
    let bytes = UnsafeRawBufferPointer(
      start: self.base + Index.name * StatisticsSlot.cellSize,
      count: length
    )
    return String(decoding: bytes, as: UTF8.self)
  }

  func take(_ name: String, kind: UInt8) {
    let bytes = Array(name.utf8.prefix(Self.maximumNameLength))
    UnsafeMutableRawBufferPointer(
      start: self.base + Index.name * StatisticsSlot.cellSize,
      count: Self.maximumNameLength
    ).copyBytes(from: bytes)
    self.cell(Index.kind).set(UInt64(kind))
    self.cell(Index.length).publish(UInt64(bytes.count))
  }

  /// What the server calls the method's kind.
  public var kind: UInt8 { UInt8(truncatingIfNeeded: self.cell(Index.kind).value) }

  public var inFlight: StatisticsCell { self.cell(Index.inFlight) }
  public var started: StatisticsCell { self.cell(Index.started) }

  /// - Parameter code: from 0 to 16.
  public func ended(_ code: Int) -> StatisticsCell {
    self.cell(Index.ended + min(max(code, 0), Self.codes - 1))
  }

  /// From the call's headers to its answer, in nanoseconds.
  public var durations: Histogram {
    Histogram(
      self.base + Index.durations * StatisticsSlot.cellSize,
      bounds: Histogram.durations
    )
  }

  /// Bytes of each message, as they were on the wire.
  public var received: Histogram {
    Histogram(self.base + Index.received * StatisticsSlot.cellSize, bounds: Histogram.sizes)
  }

  public var sent: Histogram {
    Histogram(self.base + Index.sent * StatisticsSlot.cellSize, bounds: Histogram.sizes)
  }
}
