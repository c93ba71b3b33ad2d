#!/bin/sh
# Regenerates the code beside the .proto files. Needs grpcio-tools.
set -e
cd "$(dirname "$0")/.."
python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. sampleapp/helloworld.proto
python -m grpc_tools.protoc -I . --python_out=. sampleapp/extensions.proto
python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. library/library.proto

