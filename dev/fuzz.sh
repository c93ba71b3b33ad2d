#!/usr/bin/env bash
# Fuzzes the wire layer and the transport with libFuzzer and the address sanitizer.
# Usage: dev/fuzz.sh [SECONDS [FUZZER...]]   (120 for each of WireFuzz and TransportFuzz by default)
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-120}
shift || true
include=$(${PYTHON:-python3} -c 'import sysconfig; print(sysconfig.get_path("include"))')
# gold, the toolchain's default linker, crashes on this link.
command -v ld.lld >/dev/null || { echo "dev/fuzz.sh needs lld (Debian: lld)" >&2; exit 1; }
for fuzzer in ${*:-WireFuzz TransportFuzz}; do
  GRPC_ENGINE_FUZZING=1 swift build -c release --product "$fuzzer" --scratch-path .build-fuzz \
    -Xswiftc -sanitize=fuzzer,address -Xswiftc -use-ld=lld -Xcc "-I$include"
  cases=$(echo "$fuzzer" | sed 's/Fuzz$//' | tr '[:upper:]' '[:lower:]')
  mkdir -p ".build-fuzz/corpus-$cases"
  ".build-fuzz/release/$fuzzer" -max_len=4096 -max_total_time="$seconds" \
    ".build-fuzz/corpus-$cases" "Fuzzing/Cases/$cases"
done
