"""What the tests of the health service share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import PATIENCE

UNKNOWN = health_pb2.HealthCheckResponse.UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Gate(threading.Event):
    """An event that a servicer waits for within the patience of the tests."""

    def pass_through(self) -> None:
        if not self.wait(PATIENCE):
            raise TimeoutError("the gate stayed shut")


class Probe:
    """A client of the health service."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = health_pb2_grpc.HealthStub(channel)

    def check(self, service: str = "") -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        return self.stub.Check(request, timeout=PATIENCE, wait_for_ready=True).status

    def list(self) -> dict[str, int]:
        response = self.stub.List(health_pb2.HealthListRequest(), timeout=PATIENCE)
        return {service: each.status for service, each in response.statuses.items()}

    def watch(self, service: str = "") -> Watch:
        request = health_pb2.HealthCheckRequest(service=service)
        return Watch(self.stub.Watch(request, timeout=PATIENCE, wait_for_ready=True))

    def wait_for(self, status: int, service: str = "") -> None:
        """Wait until a service has a status, whatever it had before."""
        watch = self.watch(service)
        for seen in watch:
            if seen == status:
                watch.cancel()
                return
        raise AssertionError("the watch ended")


class Watch:
    """An open watch; iterates over the statuses."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[int]:
        return (response.status for response in self._call)

    def next(self) -> int:
        return next(self._call).status

    def cancel(self) -> None:
        self._call.cancel()


def unary(behavior: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(behavior)


def echo(request: bytes, _context: Any) -> bytes:
    return request
