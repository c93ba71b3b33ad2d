#!/bin/sh
# Regenerates cities/bench_pb2*.py from cities/bench.proto, with the grpcio-tools of
# ../constraints.txt: PYTHON=path/to/python ./generate.sh
set -eu
cd "$(dirname "$0")"
exec "${PYTHON:-python}" -m grpc_tools.protoc --proto_path=. \
  --python_out=. --pyi_out=. --grpc_python_out=. cities/bench.proto
