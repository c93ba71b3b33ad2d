package import GRPCEngineStatistics
package import GRPCEngineTransport
package import GRPCEngineWire

/// Everything that a server can be told.
package struct ServerConfiguration: Sendable {
  package var transport = TransportConfiguration()
  /// The most calls at a time (`maximum_concurrent_rpcs`); the default is no limit.
  package var maximumConcurrentCalls: Int?
  /// The largest message sent, in bytes. The default is no limit, as grpcio's.
  package var maxSendMessageLength = Int.max
  /// How answers are compressed unless a call says otherwise. The default is not at all.
  package var compression = CompressionAlgorithm.identity
  /// The encodings that are used and taken; the default is all.
  package var enabledCompression = EnabledCompression.all
  /// Threads for sockets and frames. The default is 1: it carries more calls than one Python
  /// interpreter can answer.
  package var eventLoopThreads = 1
  /// Watch streams of the health service at a time. The default is 10,000.
  package var maximumHealthWatchers = 10_000
  /// Where the server counts. The default is memory of its own.
  package var statistics: ServerStatistics?
  package init() {}
}
