internal import CPythonABI
internal import GRPCEngineStatistics
internal import Glibc
internal import PythonInterop

/// `_engine.StatisticsBoard`: what the parent of worker processes reads and writes of their figures,
/// and what a worker's Python writes of its own.
enum StatisticsBoardType {
  static func make() -> HeapType<StatisticsBoard>? {
    HeapType.make(
      name: "django_grpc._engine.StatisticsBoard",
      documentation: "The figures of all worker processes, in memory that they share.",
      methods: Self.readers + Self.writers
    )
  }

  /// `make_statistics_board(descriptor, slots)`.
  static func makeBoard(_ arguments: PythonArguments) -> PythonPointer? {
    guard let descriptor = arguments[0], let slots = arguments[1] else { return nil }
    guard let descriptor = PythonNumber.int(descriptor).flatMap({ CInt(exactly: $0) }),
      let slots = PythonNumber.int(slots)
    else {
      PythonError.raiseTypeError("a statistics board is made of a descriptor and a number of slots")
      return nil
    }
    do throws(StatisticsBoard.Malformed) {
      let board =
        slots == 0
        ? try StatisticsBoard(descriptor: descriptor)
        : try StatisticsBoard(layingOut: descriptor, slotCount: slots)
      return EngineTypes.current?.statisticsBoard.make(board)
    } catch {
      if let code = error.errno {
        PythonError.raiseOSError(errno: code, String(cString: strerror(code)))
      } else {
        PythonError.raiseValueError(error.message)
      }
      return nil
    }
  }

  private static func board(_ object: PythonPointer?) -> StatisticsBoard? {
    HeapType<StatisticsBoard>.payload(object)
  }

  /// The slot of a number; `nil` with ValueError or TypeError set.
  private static func slot(_ object: PythonPointer?, _ index: PythonPointer?) -> StatisticsSlot? {
    guard let board = Self.board(object), let index else { return nil }
    guard let index = PythonNumber.int(index) else {
      PythonError.raiseTypeError("the slot must be an int")
      return nil
    }
    guard (0..<board.slotCount).contains(index) else {
      PythonError.raiseValueError("the board has \(board.slotCount) slots")
      return nil
    }
    return board.slot(index)
  }

  private static var readers: [PyMethodDef] {
    [
      PythonMethod.oneArgument("is_ready", "Whether a process says that it is ready for calls.") {
        Self.slot($0, $1).flatMap { Python.newBool($0[.ready].value != 0) }
      },
      PythonMethod.oneArgument("pulse", "When `beat` was called last, in milliseconds; 0: never.") {
        Self.slot($0, $1).flatMap { PythonNumber.make(Int(clamping: $0[.pulse].value)) }
      },
      PythonMethod.oneArgument(
        "calls_ended",
        "The calls that have ended in a slot, those of processes before included."
      ) { Self.slot($0, $1).flatMap { PythonNumber.make(Int(clamping: $0[.callsEnded].value)) } },
    ]
  }

  private static var writers: [PyMethodDef] {
    [
      PythonMethod.oneArgument("beat", "Tell that Python runs in the process of a slot.") {
        Self.slot($0, $1).flatMap {
          $0[.pulse].set(ServerStatistics.now)
          return Python.newNone()
        }
      },
      PythonMethod.oneArgument("announce", "Have a process say NOT_SERVING to health checks.") {
        Self.slot($0, $1).flatMap {
          $0[.leaving].set(1)
          return Python.newNone()
        }
      },
      PythonMethod.oneArgument("process_ended", "Set what a process has left in its slot.") {
        Self.slot($0, $1).flatMap {
          $0.processEnded()
          return Python.newNone()
        }
      },
      PythonMethod.oneArgument("set_workers", "Say how many worker processes there ought to be.") {
        object,
        count in
        guard let board = Self.board(object), let count else { return nil }
        guard let count = PythonNumber.int(count) else {
          PythonError.raiseTypeError("the workers must be an int")
          return nil
        }
        board[.workers].set(UInt64(clamping: count))
        return Python.newNone()
      },
      PythonMethod.oneArgument("count_restart", "Count that a worker process was replaced.") {
        object,
        reason in
        guard let board = Self.board(object), let reason else { return nil }
        guard
          let reason = PythonString.value(reason)
            .flatMap({ StatisticsBoard.RestartReason(rawValue: $0) })
        else {
          PythonError.raiseValueError("it was replaced for no reason that is counted")
          return nil
        }
        board[restarts: reason].add()
        return Python.newNone()
      },
    ]
  }
}
