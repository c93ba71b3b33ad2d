#!/bin/sh
# Writes places/pb from atlas.proto. Needs `pip install grpcio-tools==1.67.1`: generated code asks for
# the grpcio it was made with or a newer one, so it is made with a version that most people have.
# "-Iplaces/pb=protos" shows the folder protos to protoc as places/pb: what it writes goes there, and
# imports from there.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python}" -m grpc_tools.protoc -Iplaces/pb=protos --python_out=. --pyi_out=. --grpc_python_out=. places/pb/atlas.proto
