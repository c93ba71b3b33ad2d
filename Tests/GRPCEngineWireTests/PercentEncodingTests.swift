import GRPCEngineWire
import Testing

struct PercentEncodingTests {
  @Test(
    "Text is escaped where the specification says, and comes back",
    arguments: [
      ("", ""),
      ("not found", "not found"),
      ("100%", "100%25"),
      ("a\nb\t\u{7f}", "a%0Ab%09%7F"),
      (" ~", " ~"),
      ("Größe", "Gr%C3%B6%C3%9Fe"),
      ("日本", "%E6%97%A5%E6%9C%AC"),
      ("\u{0}", "%00"),
      ("😀%", "%F0%9F%98%80%25"),
    ]
  )
  func roundTrips(text: String, value: String) {
    #expect(PercentEncoding.encode(text) == value)
    #expect(PercentEncoding.decode(value) == text)
  }

  @Test(
    "Decoding keeps invalid escapes, takes both cases of hex, and repairs what is not UTF-8",
    arguments: [
      ("%", "%"),
      ("%4", "%4"),
      ("%zz", "%zz"),
      ("%4g%41", "%4gA"),
      ("%%41", "%A"),
      ("a%", "a%"),
      ("%c3%b6%C3%B6", "öö"),
      ("%FF!", "\u{fffd}!"),
      ("schön%21", "schön!"),
    ]
  )
  func decodesLeniently(value: String, text: String) {
    #expect(PercentEncoding.decode(value) == text)
  }

  @Test("Every byte survives both ways")
  func everyByte() {
    let text = String(String.UnicodeScalarView((0...0x2ff).compactMap(Unicode.Scalar.init)))
    let value = PercentEncoding.encode(text)
    #expect(value.utf8.allSatisfy { (0x20...0x7e).contains($0) })
    #expect(PercentEncoding.decode(value) == text)
  }
}
