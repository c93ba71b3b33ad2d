/// One of the seventeen codes a call can end with.
///
/// The numbers and names are those of
/// [gRPC's status codes](https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
public struct StatusCode: Hashable, Sendable, CustomStringConvertible {
  /// The number on the wire, 0 to 16.
  public let rawValue: Int

  /// - Returns: `nil` for a number that gRPC does not define.
  public init?(rawValue: Int) {
    guard Self.names.indices.contains(rawValue) else { return nil }
    self.rawValue = rawValue
  }

  private init(known rawValue: Int) {
    self.rawValue = rawValue
  }

  public static let ok = StatusCode(known: 0)
  public static let cancelled = StatusCode(known: 1)
  public static let unknown = StatusCode(known: 2)
  public static let invalidArgument = StatusCode(known: 3)
  public static let deadlineExceeded = StatusCode(known: 4)
  public static let notFound = StatusCode(known: 5)
  public static let alreadyExists = StatusCode(known: 6)
  public static let permissionDenied = StatusCode(known: 7)
  public static let resourceExhausted = StatusCode(known: 8)
  public static let failedPrecondition = StatusCode(known: 9)
  public static let aborted = StatusCode(known: 10)
  public static let outOfRange = StatusCode(known: 11)
  public static let unimplemented = StatusCode(known: 12)
  public static let internalError = StatusCode(known: 13)
  public static let unavailable = StatusCode(known: 14)
  public static let dataLoss = StatusCode(known: 15)
  public static let unauthenticated = StatusCode(known: 16)

  /// The specification's spelling, such as `DEADLINE_EXCEEDED`.
  public var name: String { Self.names[rawValue] }

  public var description: String { name }

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
