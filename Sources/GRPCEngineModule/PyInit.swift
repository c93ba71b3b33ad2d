public import CPythonABI
internal import GRPCEnginePython

/// What CPython calls when it imports `django_grpc._engine`.
@c(PyInit__engine)
public func initializeEngineModule() -> UnsafeMutablePointer<PyObject>? {
  EngineModule.make()
}
