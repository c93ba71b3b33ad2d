public import CPythonABI

/// A Python type whose instances carry a Swift object.
///
/// Made once, with the GIL held, and kept for the interpreter's life.
public final class HeapType<Payload: AnyObject>: @unchecked Sendable {
  // Safe to share: a type object, immutable after it was made and never released.
  public let type: OpaquePointer

  private init(type: OpaquePointer) { self.type = type }

  /// - Parameters:
  ///   - name: dotted, `django_grpc._engine.Name`.
  ///   - slots: beside the ones for memory, which every type shares.
  /// - Returns: `nil` with an exception set when Python refuses the type.
  public static func make(
    name: StaticString,
    documentation: StaticString,
    methods: [PyMethodDef],
    slots: [PyType_Slot] = []
  ) -> HeapType? {
    engine_object_set_release { payload in
      guard let payload else { return }
      Unmanaged<AnyObject>.fromOpaque(payload).release()
    }
    // Python keeps pointing to the table of methods, so it is never freed.
    let table = UnsafeMutablePointer<PyMethodDef>.allocate(capacity: methods.count + 1)
    table.initialize(from: methods, count: methods.count)
    (table + methods.count).initialize(to: PyMethodDef())
    let dealloc: @convention(c) (PythonPointer?) -> Void = { engine_object_dealloc($0) }
    let traverse: @convention(c) (PythonPointer?, visitproc?, UnsafeMutableRawPointer?) -> CInt = {
      engine_object_traverse($0, $1, $2)
    }
    let clear: @convention(c) (PythonPointer?) -> CInt = { engine_object_clear($0) }
    let documentationText = UnsafeMutableRawPointer(mutating: documentation.utf8Start)
    var all =
      slots + [
        PyType_Slot(
          slot: Py_tp_dealloc,
          pfunc: unsafeBitCast(dealloc, to: UnsafeMutableRawPointer.self)
        ),
        PyType_Slot(
          slot: Py_tp_traverse,
          pfunc: unsafeBitCast(traverse, to: UnsafeMutableRawPointer.self)
        ),
        PyType_Slot(
          slot: Py_tp_clear,
          pfunc: unsafeBitCast(clear, to: UnsafeMutableRawPointer.self)
        ),
        PyType_Slot(slot: Py_tp_methods, pfunc: UnsafeMutableRawPointer(table)),
        PyType_Slot(slot: Py_tp_members, pfunc: UnsafeMutableRawPointer(Self.members)),
        PyType_Slot(slot: Py_tp_doc, pfunc: documentationText),
        PyType_Slot(slot: 0, pfunc: nil),
      ]
    let type = all.withUnsafeMutableBufferPointer { buffer -> PythonPointer? in
      var spec = PyType_Spec(
        name: UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self),
        basicsize: CInt(MemoryLayout<EngineObject>.size),
        itemsize: 0,
        // Py_TPFLAGS_DEFAULT is a macro of 0 in the stable ABI but for the version tag.
        flags: CUnsignedInt(Self.hasGC | Self.haveVersionTag | Self.disallowInstantiation),
        slots: buffer.baseAddress
      )
      return PyType_FromSpec(&spec)
    }
    guard let type else { return nil }
    return HeapType(type: OpaquePointer(type))
  }

  private static var members: UnsafeMutablePointer<PyMemberDef> {
    engine_object_members_table()
  }
  private static var hasGC: UInt { 1 << 14 }
  private static var haveVersionTag: UInt { 1 << 18 }
  private static var disallowInstantiation: UInt { 1 << 7 }

  /// A new instance that keeps `payload` alive; `nil` with MemoryError set.
  public func make(_ payload: Payload) -> PythonPointer? {
    guard let object = PyType_GenericAlloc(self.type, 0) else { return nil }
    engine_object_set_payload(object, Unmanaged.passRetained(payload as AnyObject).toOpaque())
    return object
  }

  /// The payload of `self`, in a method of this type.
  ///
  /// Python has checked that `self` is an instance before it calls a method; instances are only
  /// made by `make`, so a payload is always there.
  public static func payload(_ object: PythonPointer?) -> Payload? {
    guard let object, let payload = engine_object_payload(object) else { return nil }
    return Unmanaged<Payload>.fromOpaque(payload).takeUnretainedValue()
  }

  /// The payload of any object; `nil` when it is no instance of this type.
  public func checkedPayload(_ object: PythonPointer?) -> Payload? {
    guard let object, py_type(object) == self.type else { return nil }
    return Self.payload(object)
  }
}

/// A slot that holds a C function.
public func typeSlot<Function>(_ slot: CInt, _ function: Function) -> PyType_Slot {
  PyType_Slot(slot: slot, pfunc: unsafeBitCast(function, to: UnsafeMutableRawPointer.self))
}
