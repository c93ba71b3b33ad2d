internal import NIOCore

/// The types of frames that RFC 9113 section 6 defines.
package enum FrameType {
  static let data: UInt8 = 0
  static let headers: UInt8 = 1
  static let priority: UInt8 = 2
  static let reset: UInt8 = 3
  static let settings: UInt8 = 4
  static let pushPromise: UInt8 = 5
  static let ping: UInt8 = 6
  static let goAway: UInt8 = 7
  static let windowUpdate: UInt8 = 8
  static let continuation: UInt8 = 9
}

package enum FrameFlag {
  static let acknowledgement: UInt8 = 0x1
  static let endStream: UInt8 = 0x1
  static let endHeaders: UInt8 = 0x4
  static let padded: UInt8 = 0x8
  static let priority: UInt8 = 0x20
}

/// The nine bytes that begin a frame (RFC 9113 section 4.1).
package struct FrameHeader: Sendable {
  static let size = 9

  var length: Int
  var type: UInt8
  var flags: UInt8
  /// The reserved bit means nothing, and is left out.
  var stream: Int

  init(length: Int, type: UInt8, flags: UInt8 = 0, stream: Int) {
    self.length = length
    self.type = type
    self.flags = flags
    self.stream = stream
  }

  /// - Returns: `nil` while there are fewer than nine bytes.
  init?(_ bytes: ByteBuffer) {
    guard
      let (word, flags, stream) = bytes.peekMultipleIntegers(
        as: (UInt32, UInt8, UInt32).self
      )
    else { return nil }
    self.length = Int(word >> 8)
    self.type = UInt8(truncatingIfNeeded: word)
    self.flags = flags
    self.stream = Int(stream & 0x7FFF_FFFF)
  }

  func has(_ flag: UInt8) -> Bool { self.flags & flag != 0 }

  /// Length and type.
  private var word: UInt32 { UInt32(truncatingIfNeeded: self.length << 8 | Int(self.type)) }

  func write(to buffer: inout ByteBuffer) {
    buffer.writeMultipleIntegers(self.word, self.flags, UInt32(truncatingIfNeeded: self.stream))
  }

  /// Writes length, type and flags over those at `index`.
  func set(in buffer: inout ByteBuffer, at index: Int) {
    buffer.setInteger(self.word, at: index)
    buffer.setInteger(self.flags, at: index + 4)
  }
}
