"""A server of async methods, on our engine or on grpc.aio: what `run_async.py` starts.

    python async_server.py ours|grpcio

It prints its port and serves until its standard input ends. Ours sends Django's signals around
every call; the other one doesn't, which is its best case.
"""

import asyncio
import gc
import sys
from typing import Any

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue

_MESSAGES = 1_000


async def unary(request: Any, context: Any) -> Any:
    """Answer with the request."""
    return StringValue(value=request.value)


async def stream(request: Any, context: Any) -> Any:
    """Answer with 1,000 messages."""
    for _ in range(_MESSAGES):
        yield StringValue(value=request.value)


async def collect(requests: Any, context: Any) -> Any:
    """Count the requests."""
    count = 0
    async for _ in requests:
        count += 1
    return StringValue(value=str(count))


async def echo(requests: Any, context: Any) -> Any:
    """Answer each request with itself."""
    async for request in requests:
        yield request


async def sleep(request: Any, context: Any) -> Any:
    """Answer after a second."""
    await asyncio.sleep(1)
    return request


async def idle(request: Any, context: Any) -> Any:
    """Answer once, and then hold the stream for five seconds."""
    yield request
    await asyncio.sleep(5)


_METHODS = {
    "Unary": (grpc.unary_unary_rpc_method_handler, unary),
    "Stream": (grpc.unary_stream_rpc_method_handler, stream),
    "Collect": (grpc.stream_unary_rpc_method_handler, collect),
    "Echo": (grpc.stream_stream_rpc_method_handler, echo),
    "Sleep": (grpc.unary_unary_rpc_method_handler, sleep),
    "Idle": (grpc.unary_stream_rpc_method_handler, idle),
}


def _make_server(side: str) -> tuple[Any, Any]:
    if side == "grpcio":
        server = grpc.aio.server()
        return server, server
    from django.conf import settings

    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ""}})
    import django

    django.setup()
    from django_grpc.engine import aio
    from django_grpc.wrapping.wrapper import SignalWrapper

    ours = aio.server(options=[("grpc.max_concurrent_streams", 10_000)])
    return ours, SignalWrapper(ours)


async def _serve(side: str) -> None:
    server, registrar = _make_server(side)
    registrar.add_registered_method_handlers(
        "bench.Async",
        {
            name: make(
                method,
                request_deserializer=StringValue.FromString,
                response_serializer=StringValue.SerializeToString,
            )
            for name, (make, method) in _METHODS.items()
        },
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.freeze()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
