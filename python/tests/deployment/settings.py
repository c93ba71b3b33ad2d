"""Settings of the servers that are started by the commands of `deploy/`, not by the test."""

from settings import *  # noqa: F403 - as every settings file of the tests

GRPCSERVER = {
    "servicers": ["deployment.servicers.grpc_hook"],
    "host": "127.0.0.1",
    # Its database is in memory, and without tables.
    "health": {"checks": []},
}
