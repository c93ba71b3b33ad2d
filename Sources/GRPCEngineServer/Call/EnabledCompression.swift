internal import GRPCEngineHTTP2
package import GRPCEngineWire

/// Which message encodings a server uses and takes (`grpc.compression_enabled_algorithms_bitset`).
package struct EnabledCompression: Sendable {
  // Asked for each call: two flags are found faster than a set's members.
  private let isDeflateEnabled: Bool
  private let isGzipEnabled: Bool
  /// What begins every answer; its `grpc-accept-encoding` is what is enabled.
  let headers: HeaderList

  package static let all = EnabledCompression(Set(CompressionAlgorithm.allCases))

  /// - Parameter algorithms: `identity` need not be among them, it is always possible.
  package init(_ algorithms: Set<CompressionAlgorithm>) {
    self.isDeflateEnabled = algorithms.contains(.deflate)
    self.isGzipEnabled = algorithms.contains(.gzip)
    let names = CompressionAlgorithm.allCases
      .filter { $0 == .identity || algorithms.contains($0) }
      .map(\.name)
    var headers = ResponseHeaders.beginning
    headers.append(
      HeaderField("grpc-accept-encoding", names.joined(separator: ", "), isRepeated: true)
    )
    self.headers = headers
  }

  package func contains(_ algorithm: CompressionAlgorithm) -> Bool {
    switch algorithm {
    case .identity: true
    case .deflate: self.isDeflateEnabled
    case .gzip: self.isGzipEnabled
    }
  }
}
