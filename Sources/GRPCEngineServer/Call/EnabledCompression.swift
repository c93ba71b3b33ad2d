package import GRPCEngineWire
internal import NIOHPACK

/// Which message encodings a server uses and takes (`grpc.compression_enabled_algorithms_bitset`).
package struct EnabledCompression: Sendable {
  private let algorithms: Set<CompressionAlgorithm>
  /// What begins every answer; its `grpc-accept-encoding` is what is enabled.
  let headers: HPACKHeaders

  package static let all = EnabledCompression(Set(CompressionAlgorithm.allCases))

  /// - Parameter algorithms: `identity` need not be among them, it is always possible.
  package init(_ algorithms: Set<CompressionAlgorithm>) {
    self.algorithms = algorithms.union([.identity])
    let names = CompressionAlgorithm.allCases.filter(self.algorithms.contains).map(\.name)
    self.headers = [
      ":status": "200",
      "content-type": "application/grpc",
      "grpc-accept-encoding": names.joined(separator: ", "),
    ]
  }

  package func contains(_ algorithm: CompressionAlgorithm) -> Bool {
    self.algorithms.contains(algorithm)
  }
}
