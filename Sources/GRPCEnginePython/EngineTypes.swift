internal import CPythonABI
internal import GRPCEngineLocks
internal import GRPCEngineStatistics
internal import PythonInterop

/// The Python types of the module, made once when it is imported.
final class EngineTypes: Sendable {
  let server: HeapType<PythonServer>
  let credentials: HeapType<CredentialsBox>
  let servicerContext: HeapType<SyncServicerContext>
  let requestIterator: HeapType<RequestIterator>
  let responseSender: HeapType<ResponseSender>
  let rowEncoder: HeapType<RowEncoder>
  let rowIterator: HeapType<RowIterator>
  let serializedMessage: HeapType<SerializedMessage>
  let asyncServicerContext: HeapType<AsyncServicerContext>
  let asyncRequestIterator: HeapType<AsyncRequestIterator>
  let ready: HeapType<Ready>
  let statisticsBoard: HeapType<StatisticsBoard>

  private static let shared = Locked<EngineTypes?>(nil)

  private init?() {
    guard let server = PythonServer.makeType(), let credentials = CredentialsBox.makeType(),
      let servicerContext = SyncServicerContextType.make(),
      let requestIterator = RequestIterator.makeType(),
      let responseSender = ResponseSender.makeType(), let rowEncoder = RowEncoder.makeType(),
      let rowIterator = RowIterator.makeType(),
      let serializedMessage = SerializedMessage.makeType(),
      let asyncServicerContext = AsyncServicerContextType.make(),
      let asyncRequestIterator = AsyncRequestIterator.makeType(), let ready = Ready.makeType(),
      let statisticsBoard = StatisticsBoardType.make()
    else { return nil }
    self.server = server
    self.credentials = credentials
    self.servicerContext = servicerContext
    self.requestIterator = requestIterator
    self.responseSender = responseSender
    self.rowEncoder = rowEncoder
    self.rowIterator = rowIterator
    self.serializedMessage = serializedMessage
    self.asyncServicerContext = asyncServicerContext
    self.asyncRequestIterator = asyncRequestIterator
    self.ready = ready
    self.statisticsBoard = statisticsBoard
  }

  /// Makes the types and adds those that Python names to `module`.
  ///
  /// - Returns: false with an exception set.
  static func add(to module: PythonPointer) -> Bool {
    guard let types = EngineTypes() else { return false }
    Self.shared.withLock { $0 = types }
    return PyModule_AddType(module, types.server.type) == 0
      && PyModule_AddType(module, types.credentials.type) == 0
      && PyModule_AddType(module, types.servicerContext.type) == 0
      && PyModule_AddType(module, types.requestIterator.type) == 0
      && PyModule_AddType(module, types.rowEncoder.type) == 0
      && PyModule_AddType(module, types.rowIterator.type) == 0
      && PyModule_AddType(module, types.serializedMessage.type) == 0
      && PyModule_AddType(module, types.asyncServicerContext.type) == 0
      && PyModule_AddType(module, types.asyncRequestIterator.type) == 0
      && PyModule_AddType(module, types.statisticsBoard.type) == 0
  }

  /// `nil` with RuntimeError set before the module was imported.
  static var current: EngineTypes? {
    if let types = Self.shared.withLock({ $0 }) { return types }
    PythonError.raiseRuntimeError("_engine has not been imported")
    return nil
  }
}
