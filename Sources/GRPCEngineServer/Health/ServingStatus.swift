/// `HealthCheckResponse.ServingStatus` of
/// [grpc.health.v1](https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto).
package enum ServingStatus: UInt8, Sendable, CaseIterable {
  case unknown = 0
  case serving = 1
  case notServing = 2
  /// What Watch says of a service that nobody has registered.
  case serviceUnknown = 3
}
