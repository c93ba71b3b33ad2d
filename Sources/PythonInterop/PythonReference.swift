public import CPythonABI

/// A borrowed `PyObject *`. Valid as long as somebody else owns it, and only with the GIL held.
public typealias PythonPointer = UnsafeMutablePointer<PyObject>

/// One owned reference to a Python object.
///
/// Made and destroyed with the GIL held. It cannot be copied, so every reference is dropped
/// exactly once, where the code says so.
public struct PythonReference: ~Copyable {
  public let pointer: PythonPointer

  /// Takes over a reference that the caller owns (a "new reference" of the C API).
  public init(owning pointer: PythonPointer) { self.pointer = pointer }

  /// Takes over a new reference; `nil` when the call that made it raised.
  public init?(owning pointer: PythonPointer?) {
    guard let pointer else { return nil }
    self.pointer = pointer
  }

  /// Adds a reference to a borrowed object.
  public init(retaining pointer: PythonPointer) {
    py_incref(pointer)
    self.pointer = pointer
  }

  deinit { py_decref(self.pointer) }

  /// Gives the reference to the caller, as a C function returns it.
  public consuming func take() -> PythonPointer {
    let pointer = self.pointer
    discard self
    return pointer
  }
}

/// An owned reference on its way to another thread.
///
/// A Swift object may be released on any thread, an event loop's among them, where no Python object
/// may die. So this one releases nothing: exactly one receiver, with the GIL held, calls `take`.
public struct PythonTransfer: @unchecked Sendable {
  // Safe to share: the pointer never changes, and only `take`'s caller touches what it points to.
  private let pointer: PythonPointer

  public init(retaining pointer: PythonPointer) {
    py_incref(pointer)
    self.pointer = pointer
  }

  /// The reference; called once, with the GIL held.
  public func take() -> PythonReference { PythonReference(owning: self.pointer) }
}

/// A Python object that Swift objects share.
///
/// It may be passed between threads, but must be made, used and *released* with the GIL held; who
/// keeps one says where that is.
public final class PythonHandle: @unchecked Sendable {
  // Safe to share: the pointer never changes, and what it points to is used under the GIL only.
  public let pointer: PythonPointer

  public init(retaining pointer: PythonPointer) {
    py_incref(pointer)
    self.pointer = pointer
  }

  public init(_ reference: consuming PythonReference) { self.pointer = reference.take() }

  deinit { py_decref(self.pointer) }
}
