#if canImport(Glibc)
  internal import CGRPCEngineMalloc
  internal import Glibc
#endif

/// How the process's allocator treats memory that calls free.
///
/// By default glibc gives every block above some 128 KiB back to the kernel as soon as it is freed,
/// and gets it again, page by page, zeroed, for the next call. For messages of a megabyte that is
/// most of the time that a call takes: parsing and serialising one in Python falls from 3.2 ms to
/// 0.13 ms without it (`benchmarks/run.py --only bytes`). So a busy server keeps what it freed, and
/// an idle one gives it back.
enum ProcessMemory {
  private static let keptTop: CInt = 16 << 20

  /// Has freed memory kept, up to a limit. Called when a server is made; setting it again changes
  /// nothing.
  static func keepFreed() {
    #if canImport(Glibc)
      guard Self.isOurs else { return }
      // The GIL lets one Python thread allocate at a time; an arena for each would only spread the
      // memory that is kept.
      if getenv("MALLOC_ARENA_MAX") == nil { mallopt(M_ARENA_MAX, 2) }
      // Above the largest message that is accepted by default, and what parsing, answering and
      // serialising one takes at a time.
      mallopt(M_MMAP_THRESHOLD, 8 << 20)
      mallopt(M_TRIM_THRESHOLD, Self.keptTop)
    #endif
  }

  /// Gives back what is free. Takes milliseconds, and threads for as long: not for event loops, nor
  /// with the GIL held.
  static func giveBack() {
    #if canImport(Glibc)
      guard Self.isOurs else { return }
      mallopt(M_TRIM_THRESHOLD, 256 << 10)
      Self.touchArenaTops(threads: Self.touchingThreads)
      malloc_trim(0)
      mallopt(M_TRIM_THRESHOLD, Self.keptTop)
    #endif
  }

  #if canImport(Glibc)
    /// Twice the arenas that there may be: those of `keepFreed`, and some that were there before it.
    private static let touchingThreads = 8

    /// Touches the top of every arena. Which one a thread uses, glibc decides: a new thread gets one
    /// that no other uses, or the next in turn. So each starts the next one while it lives itself.
    private static func touchArenaTops(threads: Int) {
      var thread = pthread_t()
      let hasStarted = pthread_create(
        &thread,
        nil,
        { rest in
          grpc_engine_touch_arena_top(128 << 10)
          let rest = Int(bitPattern: rest)
          if rest > 0 { ProcessMemory.touchArenaTops(threads: rest) }
          return nil
        },
        UnsafeMutableRawPointer(bitPattern: threads - 1)
      )
      // Where no thread can be had, this one's arena is better than none.
      guard hasStarted == 0 else { return grpc_engine_touch_arena_top(128 << 10) }
      pthread_join(thread, nil)
    }

    /// Who sets glibc's own environment variables knows better.
    private static var isOurs: Bool {
      getenv("MALLOC_TRIM_THRESHOLD_") == nil && getenv("MALLOC_MMAP_THRESHOLD_") == nil
    }
  #endif
}
