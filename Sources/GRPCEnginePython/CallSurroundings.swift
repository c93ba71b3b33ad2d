internal import CPythonABI
internal import PythonInterop

/// What is called before and after everything that runs for a call: a
/// `django_grpc.engine.types.Surroundings`. With the GIL held only.
final class CallSurroundings {
  enum Moment: Int, CaseIterable {
    /// On a worker thread, the first thing.
    case start
    /// On a thread, before code of a call and after it.
    case enter, leave
    /// In the task of a call, before its code and after it.
    case begin, end

    fileprivate var name: String {
      switch self {
      case .start: "start"
      case .enter: "enter"
      case .leave: "leave"
      case .begin: "begin"
      case .end: "end"
      }
    }
  }

  private let functions: [PythonHandle]
  private let bindings: Bindings

  /// - Returns: `nil` with an exception set when `object` lacks something.
  init?(_ object: PythonPointer, bindings: Bindings) {
    var functions: [PythonHandle] = []
    for moment in Moment.allCases {
      guard let function = PythonReference(owning: Python.attribute(object, moment.name)) else {
        return nil
      }
      functions.append(PythonHandle(function))
    }
    self.functions = functions
    self.bindings = bindings
  }

  /// What goes wrong is logged: the call is not to suffer.
  func perform(_ moment: Moment) {
    if let result = py_call0(self.functions[moment.rawValue].pointer) {
      py_decref(result)
    } else if let error = PythonError.fetch() {
      self.bindings.log("Exception in what surrounds a call", error)
    }
  }
}
