internal import CPythonABI
internal import GRPCEngineServer
internal import GRPCEngineTransport
internal import PythonInterop

/// Sockets that listen, for Python.
enum ListeningSockets {
  /// `bind(address, reuse_port)`: a tuple of descriptors, which are the caller's, as is the file of a
  /// Unix domain socket. `nil` with OSError or ValueError set.
  static func bind(_ arguments: PythonArguments) -> PythonPointer? {
    guard let address = arguments[0], let reusePort = arguments[1] else { return nil }
    guard let text = PythonString.value(address) else {
      PythonError.raiseValueError("an address must be a str that UTF-8 can encode")
      return nil
    }
    let isShared = Python.isTrue(reusePort)
    let bound = Self.withoutGIL {
      try BoundSocket.bind(
        ListenAddress(text),
        reusePort: isShared,
        backlog: TransportConfiguration().backlog
      )
    }
    guard let bound else { return nil }
    let descriptors = bound.map { $0.release() }
    return PythonCollections.tuple(count: descriptors.count) {
      PythonNumber.make(Int(descriptors[$0]))
    }
  }

  /// What binds, called without the GIL: a name may take the resolver seconds.
  ///
  /// - Returns: `nil` with an exception set: OSError where the system refuses, ValueError for a
  ///   mistake.
  static func withoutGIL<Bound>(_ bind: () throws -> Bound) -> Bound? {
    do {
      return try Python.detachedThrowing(bind)
    } catch let error as BoundSocket.Failure {
      PythonError.raiseOSError(errno: error.errno, error.message)
    } catch let error as ListenAddress.Malformed {
      PythonError.raiseValueError(error.message)
    } catch let error as Server.WrongState {
      PythonError.raiseValueError(error.message)
    } catch {
      PythonError.raiseRuntimeError("\(error)")
    }
    return nil
  }
}
