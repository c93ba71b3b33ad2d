internal import GRPCEngineWire
internal import NIOCore

/// The methods of `grpc.health.v1.Health`, answered on the event loop: no servicer, no worker and
/// no interpreter is asked, so a probe is answered while all of them are busy.
///
/// Semantics: [health checking](https://github.com/grpc/grpc/blob/master/doc/health-checking.md)
/// and the servicer of grpcio-health-checking. Beyond the latter, the streams of a server that
/// drains are ended, as they would otherwise keep it for its whole grace.
final class HealthService: Sendable {
  static let name = "grpc.health.v1.Health"
  /// The most services that List gives, by the comment in health.proto.
  static let maximumListed = 100
  /// The longest name that can be watched, in bytes. A stream keeps its name.
  static let maximumNameLength = 1024
  /// The longest request, in bytes. It is read on the event loop, which nothing may keep for long.
  static let maximumRequestLength = 8 * 1024

  private let board: HealthBoard

  init(_ board: HealthBoard) { self.board = board }

  /// The methods' handlers by their paths.
  var methods: [(path: String, kind: CallKind, handler: any MethodHandler)] {
    [
      ("/\(Self.name)/Check", .unaryUnary, EventLoopMethod { self.check($0) }),
      ("/\(Self.name)/List", .unaryUnary, EventLoopMethod { self.list($0) }),
      ("/\(Self.name)/Watch", .unaryStream, EventLoopMethod { self.watch($0) }),
    ]
  }

  private func check(_ call: Call) {
    guard let service = Self.read(call, HealthMessages.service) else { return }
    guard let status = self.board.status(of: service) else {
      return call.finish(Status(code: .notFound, details: "unknown service"), isLast: true)
    }
    Self.respond(call, HealthMessages.response(status))
  }

  private func list(_ call: Call) {
    guard Self.read(call, HealthMessages.checkListRequest) != nil else { return }
    let statuses = self.board.statuses
    guard statuses.count <= Self.maximumListed else {
      let details = "there are more than \(Self.maximumListed) services"
      return call.finish(Status(code: .resourceExhausted, details: details), isLast: true)
    }
    Self.respond(call, HealthMessages.listResponse(statuses))
  }

  private func watch(_ call: Call) {
    guard let service = Self.read(call, HealthMessages.service) else { return }
    guard service.utf8.count <= Self.maximumNameLength else {
      let details = "the service's name is longer than \(Self.maximumNameLength) bytes"
      return call.finish(Status(code: .invalidArgument, details: details), isLast: true)
    }
    let board = self.board
    let watcher = HealthWatcher(call, service: service)
    switch board.add(watcher) {
    case .refused:
      let details = "too many health watches"
      call.finish(Status(code: .resourceExhausted, details: details), isLast: true)
    case .watchesNoMore:
      watcher.update(from: board)
      watcher.end()
    case .watches:
      let isOpen = call.onTermination { _ in
        board.remove(watcher)
        call.handlerReturned()
      }
      guard isOpen else { return board.remove(watcher) }
      watcher.update(from: board)
    }
  }

  /// Reads the only request of a call.
  ///
  /// - Returns: `nil` when that could not be; the call has its status then.
  private static func read<Request>(
    _ call: Call,
    _ parse: (ByteBuffer) throws(ProtobufReader.Malformed) -> Request
  ) -> Request? {
    do {
      guard case .message(let message) = try call.nextMessage() else {
        call.finish(Status(code: .internalError, details: "no request"), isLast: true)
        return nil
      }
      return try parse(message)
    } catch let error as MessageCodecError {
      call.finish(error.status, isLast: true)
    } catch {
      // The code is that of gRPC's table of statuses, the words are grpcio's.
      let details = "Exception deserializing request!"
      call.finish(Status(code: .internalError, details: details), isLast: true)
    }
    return nil
  }

  private static func respond(_ call: Call, _ message: [UInt8]) {
    do {
      try message.withUnsafeBytes {
        try call.respond($0, mayCompress: true, status: .ok, metadata: nil)
      }
    } catch {
      let codecError = error as? MessageCodecError
      call.finish(codecError?.status ?? Status(code: .internalError), isLast: true)
    }
  }
}

/// A method that is answered at once, on the call's event loop.
private final class EventLoopMethod: MethodHandler {
  let startsOnFirstMessage = true
  let isLimited = false
  private let body: @Sendable (Call) -> Void

  init(_ body: @escaping @Sendable (Call) -> Void) { self.body = body }

  func start(_ call: Call) { self.body(call) }
}

extension Server {
  /// Answers `grpc.health.v1.Health` from now on.
  package func enableHealth() {
    var limits = MethodLimits()
    limits.maximumMessageLength = HealthService.maximumRequestLength
    for (path, kind, handler) in HealthService(self.health).methods {
      self.methods.register(handler, for: path, kind: kind, ownLimits: limits)
    }
  }
}
