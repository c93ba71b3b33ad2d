internal import GRPCEngineHTTP2
package import NIOCore

/// What one connection may do and cost.
///
/// The defaults are those of gRPC core's server (its `grpc.*` channel arguments) where it has one.
package struct TransportConfiguration: Sendable {
  /// HTTP/2 settings and windows.
  package struct HTTP2: Sendable {
    /// `SETTINGS_MAX_CONCURRENT_STREAMS`. The default is 4,096: more than clients have under way.
    package var maxConcurrentStreams = 4096
    /// The largest header list of a call, in bytes as RFC 9113 section 6.5.2 counts them; a larger
    /// one is answered RESOURCE_EXHAUSTED. `SETTINGS_MAX_HEADER_LIST_SIZE`. The default is 16 KiB, core's
    /// hard limit (`grpc.absolute_max_metadata_size`).
    package var maxHeaderListSize = 16 * 1024
    /// The largest header block, in bytes as they come, past which the connection ends: a call that is
    /// only somewhat too large must not cost its neighbours theirs.
    var maxHeaderBlock: Int { self.maxHeaderListSize + 64 * 1024 }
    /// `SETTINGS_INITIAL_WINDOW_SIZE` in bytes and the most that a stream holds for a servicer that
    /// does not read. The default is 64 KiB - 1.
    package var streamWindowSize = 65_535
    /// The connection's receive window in bytes. The default is 1 MiB.
    package var connectionWindowSize = 1 << 20
    /// `SETTINGS_MAX_FRAME_SIZE` in bytes. The default is 16 KiB.
    package var maxFrameSize = 16_384
    /// How many bytes of answers a stream keeps for a peer that does not read before its producer
    /// has to wait. The default is 64 KiB.
    package var sendBufferSize = 64 * 1024
    package init() {}
  }

  /// The pings that this server sends, and those that it bears.
  package struct Keepalive: Sendable {
    /// Time without a read after which a ping is sent; `nil` sends none. The default is 2 h.
    package var interval: TimeAmount? = .hours(2)
    /// How long a ping may stay unanswered before the connection is closed. The default is 20 s.
    package var timeout: TimeAmount = .seconds(20)
    /// Whether pings are sent while there is no call. The default is `false`.
    package var permitWithoutCalls = false
    /// The least time between two pings of a peer to which nothing was sent. The default is 5 min.
    package var minReceivedPingInterval: TimeAmount = .minutes(5)
    /// How many pings may come too soon before the connection ends with ENHANCE_YOUR_CALM; 0 bears
    /// any number. The default is 2.
    package var maxPingStrikes = 2
    package init() {}
  }

  /// What peers may make this server hold: what came and has not been taken, and what goes out and has
  /// not left.
  package struct Memory: Sendable {
    /// Bytes that one connection's peer may send ahead of what is taken, headers included. Past it
    /// windows stay shut, and where that would be for ever the newest calls end with
    /// RESOURCE_EXHAUSTED; one message may always come. The default, `nil`, is 32 MiB: eight of the
    /// largest messages, or five hundred full stream windows; or 128 such windows, where those have been
    /// made so large. `Int.max` is no limit.
    package var connection: Int?
    /// Bytes of all connections together, answers included. Past it the connection that holds the most
    /// loses its newest calls, until it holds half. The default is 512 MiB: sixteen connections at
    /// their limit. `Int.max` is no limit.
    package var pool = 512 << 20
    package init() {}
  }

  package var http2 = HTTP2()
  package var memory = Memory()
  package var keepalive = Keepalive()
  /// Time without a call after which a connection is drained. The default is never.
  package var maxConnectionIdle: TimeAmount?
  /// Age at which a connection is drained. The default is never. Each connection's own limit is
  /// spread by ±10 %, so that clients which came together do not leave together.
  package var maxConnectionAge: TimeAmount?
  /// How long calls may run on after a connection reached its age. The default is for ever.
  package var maxConnectionAgeGrace: TimeAmount?
  /// Connections at a time over all listeners; those past it wait to be accepted. The default is no
  /// limit.
  package var maxConnections: Int?
  /// How long a new connection may take for TLS and its HTTP/2 preface. The default is 120 s.
  package var handshakeTimeout: TimeAmount = .seconds(120)
  /// The largest message accepted, in bytes, after decompression too. The default is 4 MiB;
  /// `Int.max` accepts any.
  package var maxReceiveMessageLength = 4 * 1024 * 1024
  /// Whether several processes may listen on one port (`SO_REUSEPORT`). The default is `true`, as
  /// grpcio's.
  package var reusePort = true
  /// Pending connections that the kernel keeps. The default is 1,024.
  package var backlog: Int32 = 1024
  package init() {}

  /// What one connection's peer may send ahead of what is taken, in bytes.
  var connectionMemory: Int {
    self.memory.connection ?? max(32 << 20, 128 * min(self.http2.streamWindowSize, 1 << 31))
  }

  /// `http2.streamWindowSize`, unless a few streams could fill the connection's memory with it.
  var streamWindow: Int {
    min(self.http2.streamWindowSize, max(HTTP2Settings.initialWindow, self.connectionMemory / 4))
  }

  var http2Settings: HTTP2Settings {
    var settings = HTTP2Settings()
    settings.maxConcurrentStreams = self.http2.maxConcurrentStreams
    settings.streamWindow = self.streamWindow
    settings.maxFrameSize = self.http2.maxFrameSize
    settings.maxHeaderListSize = self.http2.maxHeaderListSize
    settings.maxHeaderBlock = self.http2.maxHeaderBlock
    settings.maxResets = max(10_000, 2 * min(self.http2.maxConcurrentStreams, 1 << 16))
    return settings
  }
}
