/// What a server announces, and what it bears.
package struct HTTP2Settings: Sendable {
  /// RFC 9113 section 6.9.2: where every window begins, of streams and of connections.
  package static let initialWindow = 65_535
  /// Section 6.9.1.
  package static let largestWindow = 0x7FFF_FFFF
  /// Section 6.5.2: what every peer takes.
  package static let leastFrameSize = 16_384

  /// SETTINGS_MAX_CONCURRENT_STREAMS; streams past it are refused.
  package var maxConcurrentStreams = 4096
  /// SETTINGS_INITIAL_WINDOW_SIZE, in bytes.
  package var streamWindow = Self.initialWindow
  /// SETTINGS_MAX_FRAME_SIZE, in bytes.
  package var maxFrameSize = Self.leastFrameSize
  /// SETTINGS_MAX_HEADER_LIST_SIZE, in bytes by section 6.5.2. More than that is not kept.
  package var maxHeaderListSize = 16 * 1024
  /// The largest header block in bytes as they come. A larger one ends the connection.
  package var maxHeaderBlock = 80 * 1024
  /// Streams that a peer may reset in five seconds, which costs it nothing and may cost the server a call.
  /// Calls that run out of time are reset by their client: a busy one does that with all that it has.
  package var maxResets = 10_000

  package init() {}
}
