import GRPCEngineWire
import Testing

struct Base64Tests {
  @Test(
    "RFC 4648's examples are encoded without padding",
    arguments: [
      ("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"),
      ("fooba", "Zm9vYmE"), ("foobar", "Zm9vYmFy"),
    ]
  )
  func examples(text: String, encoded: String) {
    #expect(Base64.encode(Array(text.utf8)) == encoded)
    #expect(Base64.encode(text.utf8) == encoded)
    #expect(Base64.encode(text.utf8.reversed().reversed()) == encoded)
    #expect(Base64.decode(encoded) == Array(text.utf8))
  }

  @Test(
    "Whole, missing and partial padding is accepted",
    arguments: [
      ("AAE=", [0, 1]), ("AA==", [0]), ("AA=", [0]), ("AA", [0]), ("+/+/", [251, 255, 191]),
    ]
  )
  func padding(text: String, bytes: [UInt8]) {
    #expect(Base64.decode(text) == bytes)
  }

  @Test(
    "What is not base64 is refused",
    arguments: [
      "A", "AAAAA", "=", "==", "A===", "AAAA=", "AAA==", "AA===", "AA=A", "A A=", "_-8=",
      "AAE=,AAE=",
      "AB", "AB==", "AAF", "AAAA\n", "ÄÄ", "AA\u{0}A",
    ]
  )
  func refuses(text: String) {
    #expect(Base64.decode(text) == nil)
  }

  @Test("Every byte at every place in a group survives both ways", arguments: 0..<6)
  func everyByte(offset: Int) {
    let bytes = [UInt8](repeating: 7, count: offset) + (UInt8.min...UInt8.max)
    #expect(Base64.decode(Base64.encode(bytes)) == bytes)
    #expect(bytes.withUnsafeBytes { Base64.encode($0) } == Base64.encode(bytes))
  }
}
