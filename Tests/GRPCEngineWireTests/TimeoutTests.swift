import GRPCEngineWire
import Testing

struct TimeoutTests {
  @Test(
    "Every unit is understood, up to eight digits",
    arguments: [
      ("1H", Duration.seconds(3600)),
      ("2M", .seconds(120)),
      ("3S", .seconds(3)),
      ("100m", .milliseconds(100)),
      ("5u", .microseconds(5)),
      ("6n", .nanoseconds(6)),
      ("0n", .zero),
      ("007S", .seconds(7)),
      ("99999999H", .seconds(99_999_999 * 3600)),
      ("99999999n", .nanoseconds(99_999_999)),
    ]
  )
  func parses(value: String, duration: Duration) {
    #expect(Timeout.parse(value) == duration)
  }

  @Test(
    "Anything else is malformed",
    arguments: [
      "", "S", "1", "10", "123456789S", "-1S", "+1S", "1s", "1h", "1.5S", "1 S", " 1S", "1S ",
      "1SS",
      "٣S", "1µ", "1\u{0}S",
    ]
  )
  func refuses(value: String) {
    #expect(Timeout.parse(value) == nil)
  }

  @Test(
    "A duration is written in the finest unit that fits",
    arguments: [
      (Duration.nanoseconds(1), "1n"),
      (.nanoseconds(99_999_999), "99999999n"),
      (.nanoseconds(100_000_000), "100000u"),
      (.nanoseconds(100_000_001), "100001u"),
      (.seconds(1), "1000000u"),
      (.seconds(100), "100000m"),
      (.seconds(100_000), "100000S"),
      (.seconds(1_000_000), "1000000S"),
      (.seconds(99_999_999), "99999999S"),
      (.seconds(100_000_000), "1666667M"),
      (.seconds(99_999_999 * 60 + 1), "1666667H"),
      (.seconds(99_999_999 * 3600), "99999999H"),
    ]
  )
  func encodes(duration: Duration, value: String) {
    #expect(Timeout.encode(duration) == value)
  }

  @Test("What the wire cannot say becomes its least or its greatest value")
  func saturates() {
    #expect(Timeout.encode(.zero) == "1n")
    #expect(Timeout.encode(.seconds(-5)) == "1n")
    #expect(Timeout.encode(.nanoseconds(1) / 10) == "1n")
    #expect(Timeout.encode(.seconds(Int64.max)) == "99999999H")
    #expect(Timeout.encode(.seconds(Int64.max) * 10) == "99999999H")
    #expect(Timeout.encode(.seconds(Int64.min) * 10) == "1n")
  }

  @Test("A written timeout is never shorter than the duration, and no longer than a unit more")
  func roundsUp() throws {
    var duration = Duration.nanoseconds(1)
    while duration < .seconds(Int64(99_999_999) * 3600) {
      let read = try #require(Timeout.parse(Timeout.encode(duration)))
      #expect(read >= duration)
      #expect(read <= duration + max(.nanoseconds(1), duration / 1000))
      duration = duration * 17 / 7 + .nanoseconds(3)
    }
  }
}
