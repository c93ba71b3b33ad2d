// Compiled only into the fuzzer itself; elsewhere this target is a library, so that the kept cases run
// with the ordinary tests.
#if FUZZING
  private import CLibFuzzer

  @main
  enum TransportFuzz {
    static func main() {
      var argc = CommandLine.argc
      var argv: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = CommandLine.unsafeArgv
      let status = withUnsafeMutablePointer(to: &argv) { argv in
        LLVMFuzzerRunDriver(&argc, argv) { data, size in
          let violation = TransportProperty.violation(
            by: Array(UnsafeBufferPointer(start: data, count: size))
          )
          if let violation { fatalError(violation) }
          return 0
        }
      }
      if status != 0 { fatalError("libFuzzer ended with status \(status)") }
    }
  }
#endif
