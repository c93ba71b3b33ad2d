"""What the tests of the engine share: the server under test, its calls, and bounded waits."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

import grpc
import pytest

from .raw import RawConnection

#: "django_grpc" (the default) for our engine, "grpcio" for the server that it is measured by.
UNDER_TEST = os.environ.get("ENGINE_UNDER_TEST", "django_grpc")
OURS = UNDER_TEST != "grpcio"

#: Seconds. The bound of every wait and every call; no test passes by letting it run out.
PATIENCE = 30.0
SERVICE = "conformance.Service"

if OURS:
    from django_grpc import engine

    create_server: Callable[..., grpc.Server] = engine.server
    credentials: Any = engine
    ssl_server_credentials: Callable[..., Any] = engine.ssl_server_credentials
else:
    create_server = grpc.server
    credentials = grpc
    ssl_server_credentials = grpc.ssl_server_credentials

#: The logger that a servicer's faults are reported to.
LOGGER_NAME = "django_grpc" if OURS else "grpc._server"


def ours_only(reason: str) -> pytest.MarkDecorator:
    """Mark a test whose outcome our design promises and grpcio's server does not give.

    Args:
        reason: how grpcio differs, and why ours does.
    """
    return pytest.mark.skipif(not OURS, reason=f"promised of our engine only: {reason}")


class Gate(threading.Event):
    """An event that both sides of a test wait for within `PATIENCE`."""

    def pass_through(self) -> None:
        """Wait until the gate is open.

        Raises:
            TimeoutError: it stayed shut.
        """
        if not self.wait(PATIENCE):
            raise TimeoutError("the gate stayed shut")


def eventually(condition: Callable[[], bool], *, within: float = PATIENCE) -> bool:
    """Whether `condition` comes true in time, for states that no event announces."""
    pause = threading.Event()
    for _ in range(int(within / 0.01)):
        if condition():
            return True
        pause.wait(0.01)
        gc.collect(0)
    return condition()


def failure(call: Callable[[], Any]) -> Any:
    """The `grpc.RpcError` (also a `grpc.Call`) that `call` ends with.

    A streamed answer is iterated to its end first; a unary one must be awaited by `call`.
    """

    def complete() -> None:
        outcome = call()
        if hasattr(outcome, "__next__"):
            list(outcome)

    with pytest.raises(grpc.RpcError) as caught:
        complete()
    return caught.value


def unary_unary(behavior: Callable[..., Any], **kwargs: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(behavior, **kwargs)


def unary_stream(behavior: Callable[..., Any], **kwargs: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_stream_rpc_method_handler(behavior, **kwargs)


def stream_unary(behavior: Callable[..., Any], **kwargs: Any) -> grpc.RpcMethodHandler:
    return grpc.stream_unary_rpc_method_handler(behavior, **kwargs)


def stream_stream(behavior: Callable[..., Any], **kwargs: Any) -> grpc.RpcMethodHandler:
    return grpc.stream_stream_rpc_method_handler(behavior, **kwargs)


def echo(request: Any, _context: grpc.ServicerContext) -> Any:
    return request


#: The four kinds of call, in gRPC's order.
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def of_kind(kind: str, body: Callable[[grpc.ServicerContext], Any]) -> grpc.RpcMethodHandler:
    """A handler of any kind whose servicer reads what there is to read and then runs `body`.

    What `body` returns is the answer, or the only message of a streamed one; of None, a streamed
    answer has no message and a unary one is empty.
    """

    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        if kind.startswith("stream"):
            for _ in request:
                pass
        answer = body(context)
        return b"" if answer is None else answer

    def stream(request: Any, context: grpc.ServicerContext) -> Any:
        if kind.startswith("stream"):
            for _ in request:
                pass
        answer = body(context)
        if answer is not None:
            yield answer

    return {
        "unary_unary": lambda: unary_unary(unary),
        "unary_stream": lambda: unary_stream(stream),
        "stream_unary": lambda: stream_unary(unary),
        "stream_stream": lambda: stream_stream(stream),
    }[kind]()


class Served:
    """A server that runs, and the ways to call it."""

    def __init__(self, server: grpc.Server, target: str, closing: contextlib.ExitStack) -> None:
        self.server = server
        self.target = target
        self._closing = closing
        self._channel: grpc.Channel | None = None

    @property
    def port(self) -> int:
        return int(self.target.rpartition(":")[2])

    def channel(
        self,
        *,
        options: Sequence[tuple[str, Any]] = (),
        compression: grpc.Compression | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> grpc.Channel:
        """A new channel with a connection of its own, closed when the test ends."""
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        if credentials is None:
            channel = grpc.insecure_channel(self.target, options, compression)
        else:
            channel = grpc.secure_channel(self.target, credentials, options, compression)
        self._closing.callback(channel.close)
        return channel

    @property
    def shared_channel(self) -> grpc.Channel:
        """The channel of calls that name none."""
        if self._channel is None:
            self._channel = self.channel()
        return self._channel

    def _method(self, kind: str, method: str, channel: grpc.Channel | None, kwargs: Any) -> Any:
        path = method if method.startswith("/") else f"/{SERVICE}/{method}"
        return getattr(channel or self.shared_channel, kind)(path, **kwargs)

    def unary_unary(self, method: str, channel: grpc.Channel | None = None, **kw: Any) -> Any:
        return self._method("unary_unary", method, channel, kw)

    def unary_stream(self, method: str, channel: grpc.Channel | None = None, **kw: Any) -> Any:
        return self._method("unary_stream", method, channel, kw)

    def stream_unary(self, method: str, channel: grpc.Channel | None = None, **kw: Any) -> Any:
        return self._method("stream_unary", method, channel, kw)

    def stream_stream(self, method: str, channel: grpc.Channel | None = None, **kw: Any) -> Any:
        return self._method("stream_stream", method, channel, kw)

    def call(self, kind: str, method: str, *requests: bytes, **kwargs: Any) -> Any:
        """Start a call of `kind`; a unary request is the first of `requests`, or empty.

        Returns:
            What grpc's multi-callable returns: a `grpc.Call` that is also a future, for a unary
            answer, and an iterator for a streamed one.
        """
        kwargs.setdefault("timeout", PATIENCE)
        method_call = getattr(self, kind)(method)
        argument: Any = iter(requests) if kind.startswith("stream") else (requests or (b"",))[0]
        if kind.endswith("unary"):
            return method_call.future(argument, **kwargs)
        return method_call(argument, **kwargs)

    def run(self, kind: str, method: str, *requests: bytes, **kwargs: Any) -> list[bytes]:
        """Make a call of `kind` and return the messages of its answer."""
        call = self.call(kind, method, *requests, **kwargs)
        return [call.result()] if kind.endswith("unary") else list(call)

    def raw(self, **kwargs: Any) -> RawConnection:
        """A connection of bare HTTP/2 frames, closed when the test ends."""
        connection = RawConnection(("127.0.0.1", self.port), **kwargs)
        self._closing.callback(connection.close)
        return connection

    def assert_healthy(self, method: str = "Echo") -> None:
        """Have the server answer a call on a connection of its own."""
        with grpc.insecure_channel(self.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            answer = self.unary_unary(method, channel)(b"still here", timeout=PATIENCE)
        assert answer == b"still here"


def service(
    methods: Mapping[str, grpc.RpcMethodHandler], name: str = SERVICE
) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(name, dict(methods))


def _stop(server: grpc.Server) -> None:
    """End a test's server, whatever state the test left it in.

    A call that a server can't end is a fault of the server's. grpcio has it where a streamed
    request fails to be deserialized: its stop then hangs.
    """
    stopped = server.stop(0).wait(PATIENCE if OURS else 1)
    assert stopped or not OURS, "the server could not end a call"


class ServerFactory:
    """Makes servers that stop when the test ends; the `serve` fixture."""

    def __init__(self, closing: contextlib.ExitStack) -> None:
        self._closing = closing

    def bare(self, workers: int = 8, **kwargs: Any) -> grpc.Server:
        """A server that has neither ports nor been started."""
        pool = futures.ThreadPoolExecutor(workers, thread_name_prefix="worker")
        self._closing.callback(pool.shutdown, wait=False)
        server = create_server(pool, **kwargs)
        self._closing.callback(_stop, server)
        return server

    def __call__(
        self,
        methods: Mapping[str, grpc.RpcMethodHandler] | None = None,
        *,
        address: str = "127.0.0.1:0",
        credentials: Any = None,
        handlers: Iterable[grpc.GenericRpcHandler] = (),
        limits: Mapping[str, Mapping[str, Any]] | None = None,
        register: Callable[[Any], object] = lambda server: None,
        **kwargs: Any,
    ) -> Served:
        """A started server of `methods` of `SERVICE` and of `handlers`, on `address`.

        Args:
            methods: by default one, Echo, that answers with its request.
            credentials: what `ssl_server_credentials` made, for a secure port.
            limits: limits of methods by pattern, which only our engine has.
            register: adds more handlers to the server.
            kwargs: `workers`, and what `grpc.server` takes.
        """
        server: Any = self.bare(**kwargs)
        for pattern, values in (limits or {}).items():
            server.set_method_limits(pattern, **values)
        methods = {"Echo": unary_unary(echo)} if methods is None else methods
        server.add_generic_rpc_handlers((service(methods), *handlers))
        register(server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        server.start()
        target = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        return Served(server, target, self._closing)
