internal import GRPCEngineServer
internal import NIOCore

/// Whatever bytes come as a request of the health service, they are read or refused; and a message
/// that is read says the same when it is sent twice over, as protobuf merges messages that follow
/// one another.
func healthViolation(_ input: [UInt8]) -> String? {
  guard let service = try? HealthMessages.service(of: ByteBuffer(bytes: input)) else { return nil }
  guard let twice = try? HealthMessages.service(of: ByteBuffer(bytes: input + input)) else {
    return "cannot be read when sent twice"
  }
  // As bytes: equality of strings disregards how accents are composed.
  return service.utf8.elementsEqual(twice.utf8) ? nil : "another service when sent twice"
}
