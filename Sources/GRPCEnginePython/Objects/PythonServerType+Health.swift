internal import CPythonABI
internal import GRPCEngineServer
internal import NIOCore
internal import PythonInterop

extension PythonServer {
  static var healthMethods: [PyMethodDef] {
    [
      PythonMethod.noArguments("enable_health", "Answer grpc.health.v1.Health.") { object, _ in
        guard let server = PythonServer.server(object) else { return nil }
        server.server.enableHealth()
        return Python.newNone()
      },
      PythonMethod.oneArgument("add_health_services", "Make services known, as SERVING.") {
        object,
        names in
        guard let server = PythonServer.server(object), let names else { return nil }
        var services: [String] = []
        let isComplete = PythonCollections.forEach(names) { name in
          guard let service = PythonString.value(name) else {
            PythonError.raiseTypeError("a service's name must be a str")
            return false
          }
          services.append(service)
          return true
        }
        guard isComplete else { return nil }
        Python.detached { server.server.health.add(services) }
        return Python.newNone()
      },
      PythonMethod.keywords("set_health", "Set the status of a service.") {
        object,
        arguments,
        keywords in
        guard
          let given = PythonArguments(arguments, keywords, of: "set_health", "service", "status"),
          let server = PythonServer.server(object), let service = PythonServer.text(given, 0),
          let number = given[1]
        else { return nil }
        let value = PythonNumber.int(number).flatMap { UInt8(exactly: $0) }
        guard let status = value.flatMap({ ServingStatus(rawValue: $0) }),
          status != .serviceUnknown
        else {
          PythonError.raiseValueError(
            "the status must be UNKNOWN, SERVING or NOT_SERVING (0, 1 or 2)"
          )
          return nil
        }
        Python.detached { server.server.health.set(status, for: service) }
        return Python.newNone()
      },
      PythonMethod.oneArgument("set_ready", "The readiness checks have passed.") {
        object,
        seconds in
        guard let server = PythonServer.server(object), let seconds else { return nil }
        var lease: TimeAmount?
        if !Python.isNone(seconds) {
          guard let value = PythonServer.seconds(seconds) else { return nil }
          lease = TimeAmount(clampingSeconds: value)
        }
        Python.detached { server.server.health.setReady(for: lease) }
        return Python.newNone()
      },
      PythonMethod.oneArgument("set_not_ready", "A readiness check failed.") { object, reason in
        guard let server = PythonServer.server(object), let reason else { return nil }
        guard let text = PythonString.value(reason) else {
          PythonError.raiseTypeError("the reason must be a str")
          return nil
        }
        Python.detached { server.server.health.setNotReady(text) }
        return Python.newNone()
      },
      PythonMethod.oneArgument("observe_queue", "Bound the wait in the queue of a ready server.") {
        object,
        seconds in
        guard let server = PythonServer.server(object), let seconds,
          let value = PythonServer.seconds(seconds)
        else { return nil }
        server.observeQueue(seconds: value)
        return Python.newNone()
      },
      PythonMethod.noArguments("announce_shutdown", "Not ready from now on, serving as ever.") {
        object,
        _ in
        guard let server = PythonServer.server(object) else { return nil }
        Python.detached { server.server.health.announceShutdown() }
        return Python.newNone()
      },
      PythonMethod.noArguments("health_problem", "Why the server is not ready.") { object, _ in
        PythonServer.server(object)?.makeHealthProblem()
      },
      PythonMethod.oneArgument("set_health_listener", "Who is told of changes.") {
        object,
        listener in
        guard let server = PythonServer.server(object), let listener else { return nil }
        server.setHealthListener(listener)
        return Python.newNone()
      },
    ]
  }

  /// - Returns: `nil` with an exception set.
  private static func seconds(_ object: PythonPointer) -> Double? {
    if let value = PythonNumber.double(object), value >= 0 { return value }
    PythonError.raiseValueError("the seconds must be a number, 0 or more")
    return nil
  }
}

extension TimeAmount {
  /// A number of seconds, not negative, as NIO counts it; one of more than a century is cut to that.
  init(clampingSeconds seconds: Double) {
    self = .nanoseconds(Int64(min(seconds, 100 * 366 * 24 * 3600) * 1e9))
  }
}
