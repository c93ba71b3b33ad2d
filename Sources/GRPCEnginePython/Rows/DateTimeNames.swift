internal import CPythonABI
internal import PythonInterop

/// What writing dates and times needs of Python's `datetime`; the stable ABI leaves its C API out.
final class DateTimeNames: Sendable {
  let epoch: PythonHandle
  let days: PythonHandle
  let seconds: PythonHandle
  let microseconds: PythonHandle
  let toordinal: PythonHandle
  private let types: [PythonHandle]

  var datetime: OpaquePointer { OpaquePointer(self.types[0].pointer) }
  var date: OpaquePointer { OpaquePointer(self.types[1].pointer) }
  var timedelta: OpaquePointer { OpaquePointer(self.types[2].pointer) }

  /// - Parameter epoch: 1970-01-01 UTC, an aware datetime.
  /// - Returns: `nil` with an exception set.
  init?(epoch: PythonPointer) {
    guard let module = PythonReference(owning: PyImport_ImportModule("datetime")),
      let datetime = PythonReference(owning: Python.attribute(module.pointer, "datetime")),
      let date = PythonReference(owning: Python.attribute(module.pointer, "date")),
      let timedelta = PythonReference(owning: Python.attribute(module.pointer, "timedelta")),
      let days = PythonString.intern("days"), let seconds = PythonString.intern("seconds"),
      let microseconds = PythonString.intern("microseconds"),
      let toordinal = PythonString.intern("toordinal")
    else { return nil }
    self.types = [PythonHandle(datetime), PythonHandle(date), PythonHandle(timedelta)]
    self.epoch = PythonHandle(retaining: epoch)
    self.days = days
    self.seconds = seconds
    self.microseconds = microseconds
    self.toordinal = toordinal
  }
}
