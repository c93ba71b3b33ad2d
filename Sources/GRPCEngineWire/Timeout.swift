/// The value of `grpc-timeout`: up to eight digits and a unit, as *Timeout* in
/// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
public enum Timeout {
  /// - Returns: `nil` unless `value` is one to eight digits followed by one of `H M S m u n`. Zero
  ///   is accepted, as grpc's own servers do: such a call's deadline has passed on arrival.
  public static func parse(_ value: String) -> Duration? {
    value.withUTF8Bytes { bytes in
      guard (2...9).contains(bytes.count), let unit = bytes.last else { return nil }
      // Eight digits of hours are 3.6e11 seconds: nothing below can overflow.
      var amount: Int64 = 0
      for byte in bytes.dropLast() {
        guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else { return nil }
        amount = amount * 10 + Int64(byte - UInt8(ascii: "0"))
      }
      switch unit {
      case UInt8(ascii: "H"): return .seconds(amount * 3600)
      case UInt8(ascii: "M"): return .seconds(amount * 60)
      case UInt8(ascii: "S"): return .seconds(amount)
      case UInt8(ascii: "m"): return .milliseconds(amount)
      case UInt8(ascii: "u"): return .microseconds(amount)
      case UInt8(ascii: "n"): return .nanoseconds(amount)
      default: return nil
      }
    }
  }

  /// Writes the finest unit that eight digits can hold, rounded up so that the peer never gives up
  /// early.
  ///
  /// The wire has only positive values, so a duration that is not positive becomes `1n`; one beyond
  /// the wire's range becomes its largest value, `99999999H`.
  public static func encode(_ duration: Duration) -> String {
    if duration <= .zero { return "1n" }
    if duration >= .seconds(largestAmount * 3600) { return "\(largestAmount)H" }
    let (seconds, attoseconds) = duration.components
    if seconds < 1_000_000 {
      let nanoseconds = seconds * 1_000_000_000 + dividedUp(attoseconds, by: 1_000_000_000)
      for (divisor, unit): (Int64, String) in [(1, "n"), (1000, "u"), (1_000_000, "m")] {
        let amount = dividedUp(nanoseconds, by: divisor)
        if amount <= largestAmount { return "\(amount)\(unit)" }
      }
    }
    let wholeSeconds = seconds + (attoseconds > 0 ? 1 : 0)
    for (divisor, unit): (Int64, String) in [(1, "S"), (60, "M")] {
      let amount = dividedUp(wholeSeconds, by: divisor)
      if amount <= largestAmount { return "\(amount)\(unit)" }
    }
    return "\(dividedUp(wholeSeconds, by: 3600))H"
  }

  private static let largestAmount: Int64 = 99_999_999

  private static func dividedUp(_ value: Int64, by divisor: Int64) -> Int64 {
    value / divisor + (value % divisor > 0 ? 1 : 0)
  }
}
