#!/usr/bin/env bash
# Runs the tests on checked builds, each of which has a folder of its own.
#
# Usage: dev/sanitize.sh [address] [thread] [python]   (all three by default)
#
#   address, thread   the Swift tests under that sanitizer
#   python            Python tests on an engine with the address sanitizer, in a debug build, so with
#                     checked bounds, arithmetic and exclusivity; PYTEST_ARGUMENTS chooses others
set -euo pipefail
cd "$(dirname "$0")/.."
include=$(${PYTHON:-python3} -c 'import sysconfig; print(sysconfig.get_path("include"))')
export LSAN_OPTIONS="suppressions=$PWD/dev/leaks.supp"

swift_tests() {
  local flags=(--sanitize="$1" --scratch-path ".build-$1" -Xcc "-I$include")
  swift build --build-tests "${flags[@]}"
  swift test --skip-build "${flags[@]}"
}

python_tests() {
  local flags=(--sanitize=address --scratch-path .build-address -Xcc "-I$include")
  swift build --product _engine "${flags[@]}"
  local folder=.build-address/python
  rm -rf "$folder" && mkdir -p "$folder"
  cp -r python/django_grpc python/django_grpc_testtools "$folder"
  cp .build-address/debug/lib_engine.so "$folder/django_grpc/_engine.abi3.so"
  # Of the toolchain's own clang, whose sanitizer Swift builds with.
  local runtime
  runtime=$("$(dirname "$(readlink -f "$(command -v swift)")")/clang" \
    -print-file-name=libclang_rt.asan-x86_64.so)
  # Python's own allocator would hide from the sanitizer what lies in its arenas. What Python never
  # frees is no leak of ours.
  # How much memory there is says nothing with the sanitizer's allocator.
  local unmeasured=(--ignore python/tests/engine/test_memory.py
    --deselect python/tests/engine/test_metrics.py::test_requests_that_nobody_reads_the_answers_of_cost_little
    --deselect python/tests/engine/test_scale.py::test_a_thousand_stalled_streams_starve_nobody)
  # shellcheck disable=SC2086
  LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 PYTHONMALLOC=malloc_debug \
    PYTHONPATH="$PWD/$folder" .venv/bin/python -m pytest -p no:cacheprovider "${unmeasured[@]}" \
    ${PYTEST_ARGUMENTS:-python/tests/engine python/tests/engine_aio python/tests/test_serializers_queryset.py}
}

for what in ${*:-address thread python}; do
  case $what in
    address | thread) swift_tests "$what" ;;
    python) python_tests ;;
    *) echo "dev/sanitize.sh knows address, thread and python, not '$what'" >&2 && exit 2 ;;
  esac
done
