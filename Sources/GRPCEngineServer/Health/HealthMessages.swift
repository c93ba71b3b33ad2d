package import NIOCore

/// The messages of
/// [grpc.health.v1](https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto): a
/// string, an enumeration and a map of both, so they are read and written by hand.
package enum HealthMessages {
  /// The `service` of a `HealthCheckRequest`.
  package static func service(
    of request: ByteBuffer
  ) throws(ProtobufReader.Malformed) -> String {
    var reader = ProtobufReader(request)
    var service = ""
    while let field = try reader.next() {
      guard case .bytes(number: 1, let bytes) = field else { continue }
      // The last one counts, and a proto3 string is UTF-8.
      guard let text = String(validating: bytes.readableBytesView, as: UTF8.self) else {
        throw ProtobufReader.Malformed()
      }
      service = text
    }
    return service
  }

  /// Reads a `HealthListRequest`, which has no fields.
  package static func checkListRequest(
    _ request: ByteBuffer
  ) throws(ProtobufReader.Malformed) {
    var reader = ProtobufReader(request)
    while try reader.next() != nil {}
  }

  /// A `HealthCheckResponse`.
  package static func response(_ status: ServingStatus) -> [UInt8] {
    // Field 1, a varint; proto3 leaves the default out.
    status == .unknown ? [] : [0x08, status.rawValue]
  }

  /// A `HealthListResponse`; the services are in the order of their names.
  package static func listResponse(_ statuses: [String: ServingStatus]) -> [UInt8] {
    var bytes: [UInt8] = []
    for (service, status) in statuses.sorted(by: { $0.key < $1.key }) {
      let response = Self.response(status)
      var entry: [UInt8] = []
      Self.append(field: 1, Array(service.utf8), to: &entry)
      Self.append(field: 2, response, to: &entry)
      Self.append(field: 1, entry, to: &bytes)
    }
    return bytes
  }

  /// Appends a field of a length, whose number is below 16.
  private static func append(field number: UInt8, _ value: [UInt8], to bytes: inout [UInt8]) {
    bytes.append(number << 3 | 2)
    var length = value.count
    while length >= 0x80 {
      bytes.append(UInt8(length & 0x7f) | 0x80)
      length >>= 7
    }
    bytes.append(UInt8(length))
    bytes.append(contentsOf: value)
  }
}
