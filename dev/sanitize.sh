#!/usr/bin/env bash
# Runs the Swift tests under the address and the thread sanitizer, each in a build of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
include=$(${PYTHON:-python3} -c 'import sysconfig; print(sysconfig.get_path("include"))')
export LSAN_OPTIONS="suppressions=$PWD/dev/leaks.supp"
for sanitizer in ${*:-address thread}; do
  flags=(--sanitize="$sanitizer" --scratch-path ".build-$sanitizer" -Xcc "-I$include")
  # The thread sanitizer does not see the futex of Synchronization.Mutex; under this flag a pthread
  # mutex takes its place.
  if [ "$sanitizer" = thread ]; then flags+=(-Xswiftc -DTHREAD_SANITIZER); fi
  swift build --build-tests "${flags[@]}"
  swift test --skip-build "${flags[@]}"
done
