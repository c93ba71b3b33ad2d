"""What the tests of async servicers share: the server under test, on a loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest

#: "django_grpc" (the default) for our engine, "grpcio" for the server that it is measured by.
OURS = os.environ.get("ENGINE_UNDER_TEST", "django_grpc") != "grpcio"

#: Seconds. The bound of every wait and every call; no test passes by letting it run out.
PATIENCE = 30.0
SERVICE = "conformance.Async"

if OURS:
    from django_grpc import engine
    from django_grpc.engine import aio

    create_aio_server: Callable[..., Any] = aio.server
else:
    create_aio_server = grpc.aio.server

#: The logger that a servicer's faults are reported to.
LOGGER_NAME = "django_grpc" if OURS else "grpc._cython.cygrpc"

#: "aio": `engine.aio.server` on a loop of the test's; "threaded": `engine.server`, whose async
#: methods run on a loop of its own.
FLAVOURS = ("aio", "threaded") if OURS else ("aio",)

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def ours_only(reason: str) -> pytest.MarkDecorator:
    """Mark a test whose outcome our design promises and grpcio's server does not give."""
    return pytest.mark.skipif(not OURS, reason=f"promised of our engine only: {reason}")


def handler(kind: str, behavior: Callable[..., Any], **kwargs: Any) -> Any:
    return getattr(grpc, f"{kind}_rpc_method_handler")(behavior, **kwargs)


class LoopThread:
    """A thread with an asyncio loop, which reports what asyncio complains about."""

    def __init__(self) -> None:
        self.complaints: list[dict[str, Any]] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def close(self) -> list[Any]:
        """End the loop.

        Returns:
            The tasks that were still pending.
        """

        async def others() -> list[Any]:
            # What is about to end may; a task that waits for something is none of that.
            for _ in range(10):
                await asyncio.sleep(0)
            return [it for it in asyncio.all_tasks() if it is not asyncio.current_task()]

        pending: list[Any] = self.run(others()) if OURS else []
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
        return pending


class Served:
    """A server that runs, and the ways to call it."""

    def __init__(self, server: Any, target: str, run: Callable[..., Any] | None) -> None:
        self.server = server
        self.target = target
        self._run = run
        self.channel = grpc.insecure_channel(
            target,
            [
                ("grpc.use_local_subchannel_pool", 1),
                # Windows that do not grow, so that it is known what a client takes.
                ("grpc.http2.bdp_probe", 0),
            ],
        )
        self._is_stopped = False

    def method(self, kind: str, name: str) -> Any:
        return getattr(self.channel, kind)(f"/{SERVICE}/{name}")

    def unary(self, name: str, request: bytes = b"", **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", PATIENCE)
        return self.method("unary_unary", name)(request, **kwargs)

    def call(self, kind: str, name: str, *requests: bytes, **kwargs: Any) -> Any:
        """Start a call: a future for a unary answer, an iterator for a streamed one."""
        kwargs.setdefault("timeout", PATIENCE)
        argument: Any = iter(requests) if kind.startswith("stream") else (requests or (b"",))[0]
        call = self.method(kind, name)
        return (call.future if kind.endswith("unary") else call)(argument, **kwargs)

    def messages(self, kind: str, name: str, *requests: bytes, **kwargs: Any) -> list[bytes]:
        call = self.call(kind, name, *requests, **kwargs)
        return [call.result()] if kind.endswith("unary") else list(call)

    def failure(self, kind: str, name: str, *requests: bytes, **kwargs: Any) -> Any:
        """The `grpc.RpcError` that a call ends with."""
        with pytest.raises(grpc.RpcError) as caught:
            self.messages(kind, name, *requests, **kwargs)
        return caught.value

    def stop(self, grace: float | None = None) -> None:
        self._is_stopped = True
        if self._run is None:
            assert self.server.stop(grace).wait(PATIENCE)
        else:
            self._run(self.server.stop(grace))

    def close(self) -> None:
        self.channel.close()
        if not self._is_stopped:
            self.stop()


class ServerFactory:
    """Makes servers that stop when the test ends; the `serve` fixture."""

    def __init__(self, closing: contextlib.ExitStack, flavour: str, loop: LoopThread) -> None:
        self._closing = closing
        self._flavour = flavour
        self.loop = loop

    def __call__(self, methods: Mapping[str, Any], **kwargs: Any) -> Served:
        """A started server of `methods` of `SERVICE`."""
        generic = grpc.method_handlers_generic_handler(SERVICE, dict(methods))
        pool = futures.ThreadPoolExecutor(4)
        self._closing.callback(pool.shutdown, wait=False)
        served: Served
        if self._flavour == "threaded":
            server: Any = engine.server(pool, (generic,), **kwargs)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            served = Served(server, f"127.0.0.1:{port}", None)
        else:

            async def start() -> Served:
                server = create_aio_server(pool, (generic,), **kwargs)
                port = server.add_insecure_port("127.0.0.1:0")
                await server.start()
                return Served(server, f"127.0.0.1:{port}", self.loop.run)

            served = self.loop.run(start())
        self._closing.callback(served.close)
        return served


class Gate(threading.Event):
    """An event that a test waits for within `PATIENCE`, and a servicer without blocking."""

    def pass_through(self) -> None:
        if not self.wait(PATIENCE):
            raise TimeoutError("the gate stayed shut")

    async def passed(self) -> None:
        await asyncio.to_thread(self.pass_through)
