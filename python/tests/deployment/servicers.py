"""What the servers behind the proxies serve: one method of each kind, and what goes wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from django_grpc import health

SERVICE = "deployment.Probe"

#: Tells servers apart; each process of a test has a name of its own.
NAME = os.environ.get("PROBE_NAME", "")


class Counter:
    """A number that many threads may raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def note(self) -> None:
        with self._lock:
            self._count += 1

    def read(self) -> int:
        with self._lock:
            return self._count


#: Calls of `wait` whose client was gone before they were done.
_CANCELLED = Counter()

#: Messages that `pour` has been asked for.
_POURED = Counter()


def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer with the request, and give back the client's metadata, ahead and behind."""
    metadata = context.invocation_metadata()
    mine = tuple((key, value) for key, value in metadata if key.startswith("x-"))
    context.send_initial_metadata(mine)
    again = (("t" + key, value) for key, value in mine)
    context.set_trailing_metadata((*again, ("served-by", NAME)))
    return request


def repeat(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """`COUNT MESSAGE` gives so many messages."""
    count, _, message = request.partition(b" ")
    context.set_trailing_metadata((("served-by", NAME),))
    for _ in range(int(count)):
        yield message


def join(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    """The messages of the client, one after another."""
    return b"".join(requests)


def echo_each(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """Each message as it comes."""
    yield from requests


def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Abort with the status of which the request has the number."""
    code = {code.value[0]: code for code in grpc.StatusCode}[int(request)]
    context.set_trailing_metadata((("why-bin", b"\0\xff"),))
    context.abort(code, f"as asked: {code.name}, 100 % so\n")
    raise AssertionError("abort raises")


def crash(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Raise what no servicer should."""
    raise ValueError("as asked")


def wait(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Say who serves, and then wait for the seconds that the request names."""
    ended = threading.Event()
    if not context.add_callback(ended.set):
        ended.set()
    yield NAME.encode()
    if ended.wait(float(request)):
        _CANCELLED.note()
        return
    yield b"done"


def die(request: bytes, context: grpc.ServicerContext) -> bytes:
    """End the process in the middle of the call, as a crash does."""
    os._exit(3)


def pour(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Messages of 64 KiB, for as long as somebody takes them."""
    message = bytes(65_536)
    while True:
        _POURED.note()
        yield message


def read_counter(counter: Counter) -> grpc.RpcMethodHandler:
    def read(request: bytes, context: grpc.ServicerContext) -> bytes:
        return str(counter.read()).encode()

    return grpc.unary_unary_rpc_method_handler(read)


def set_health(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Set the status that the health service gives for the whole server."""
    health.set_status("", health.ServingStatus[request.decode()])
    return b""


def grpc_hook(server: Any) -> None:
    """Register the service, whose messages are plain bytes."""
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Crash": grpc.unary_unary_rpc_method_handler(crash),
        "Wait": grpc.unary_stream_rpc_method_handler(wait),
        "Die": grpc.unary_unary_rpc_method_handler(die),
        "SetHealth": grpc.unary_unary_rpc_method_handler(set_health),
        "Pour": grpc.unary_stream_rpc_method_handler(pour),
        "GetEcho": grpc.unary_unary_rpc_method_handler(echo),
        "CountCancelled": read_counter(_CANCELLED),
        "CountPoured": read_counter(_POURED),
    }
    server.add_registered_method_handlers(SERVICE, methods)
