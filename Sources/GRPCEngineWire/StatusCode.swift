/// One of the seventeen codes a call can end with.
///
/// The numbers and names are those of
/// [gRPC's status codes](https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
package struct StatusCode: Hashable, Sendable, CustomStringConvertible {
  /// The number on the wire, 0 to 16.
  package let rawValue: Int

  /// - Returns: `nil` for a number that gRPC does not define.
  package init?(rawValue: Int) {
    guard Self.names.indices.contains(rawValue) else { return nil }
    self.rawValue = rawValue
  }

  private init(known rawValue: Int) {
    self.rawValue = rawValue
  }

  package static let ok = StatusCode(known: 0)
  package static let cancelled = StatusCode(known: 1)
  package static let unknown = StatusCode(known: 2)
  package static let invalidArgument = StatusCode(known: 3)
  package static let deadlineExceeded = StatusCode(known: 4)
  package static let notFound = StatusCode(known: 5)
  package static let alreadyExists = StatusCode(known: 6)
  package static let permissionDenied = StatusCode(known: 7)
  package static let resourceExhausted = StatusCode(known: 8)
  package static let failedPrecondition = StatusCode(known: 9)
  package static let aborted = StatusCode(known: 10)
  package static let outOfRange = StatusCode(known: 11)
  package static let unimplemented = StatusCode(known: 12)
  package static let internalError = StatusCode(known: 13)
  package static let unavailable = StatusCode(known: 14)
  package static let dataLoss = StatusCode(known: 15)
  package static let unauthenticated = StatusCode(known: 16)

  /// The specification's spelling, such as `DEADLINE_EXCEEDED`.
  package var name: String { Self.names[rawValue] }

  package var description: String { name }

  private static let names = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
  ]
}
