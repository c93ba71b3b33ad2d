#!/usr/bin/env bash
# Runs the Swift tests under the address and the thread sanitizer, each in a build of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
include=$(${PYTHON:-python3} -c 'import sysconfig; print(sysconfig.get_path("include"))')
for sanitizer in ${*:-address thread}; do
  swift test --sanitize="$sanitizer" --scratch-path ".build-$sanitizer" -Xcc "-I$include"
done
