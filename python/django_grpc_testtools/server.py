"""The engine in the test's process, inside the test's transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import grpc
from django.db import connections, reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper

from django_grpc import conf, engine, signals, utils
from django_grpc.engine.types import Interceptor
from django_grpc.signals.wrapper import SignalWrapper

#: Seconds that a call waits for the one before it, and the end of a test for the last one.
PATIENCE = 10.0

Hook = str | Callable[[Any], Any]


class InProcessServer:
    """A server on a free port of the loopback interface; a context manager that starts it.

    Where the test runs in a transaction (`django.test.TestCase`, pytest-django's `db`), the
    servicers run in it too: the server's threads use the test's own database connections. Those
    cannot do two things at once, so calls run one after the other. A call that can't begin
    because the one before it is still running, for example a stream that the test has not read to
    its end, is aborted after `PATIENCE` seconds with FAILED_PRECONDITION.

    Without a transaction (`TransactionTestCase`, pytest-django's `transactional_db`) the threads
    open connections as in production, but to an SQLite database in memory, which is shared then
    too.

        with InProcessServer(servicers=["shop.servicers.grpc_hook"]) as server:
            reply = server.stub(ShopStub).GetItem(ItemRequest(id=1), timeout=5)

    Args:
        servicers: Dotted paths or functions that add servicers to a server. The default are
            those of `settings.GRPCSERVER`.
        interceptors: Dotted paths of interceptor classes, or interceptors. The default are those
            of `settings.GRPCSERVER`.
        options: Channel arguments. The default are those of `settings.GRPCSERVER`.
        max_workers: Threads that run calls; more than one only where nothing is shared.
        server_credentials: What `django_grpc.engine.ssl_server_credentials` returns, for TLS. The
            default is plaintext, whatever the settings say.
        channel_credentials: What `grpc.ssl_channel_credentials` returns, to go with them.

    Attributes:
        address: Where it listens, as `127.0.0.1:PORT`, once it is started.
    """

    def __init__(
        self,
        servicers: Iterable[Hook] | None = None,
        *,
        interceptors: Iterable[Any] | None = None,
        options: Sequence[tuple[str, Any]] | None = None,
        max_workers: int = 1,
        server_credentials: grpc.ServerCredentials | None = None,
        channel_credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._servicers = servicers
        self._interceptors = interceptors
        self._options = options
        self._max_workers = max_workers
        self._server_credentials = server_credentials
        self._channel_credentials = channel_credentials
        self._at_end = ExitStack()
        self._channel: grpc.Channel | None = None
        self.address = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._at_end.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._at_end.close()

    @property
    def channel(self) -> grpc.Channel:
        """A channel to the server; it is closed when the server stops."""
        if self._channel is None:
            self._channel = self.open_channel()
        return self._channel

    def stub(self, stub_class: Callable[[grpc.Channel], Any]) -> Any:
        """Return a stub of a generated class, on `channel`."""
        return stub_class(self.channel)

    def open_channel(
        self,
        options: Sequence[tuple[str, Any]] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> grpc.Channel:
        """Return one more channel; it is closed when the server stops.

        Args:
            options: Channel arguments; the default are none.
            credentials: The default are the server's `channel_credentials`.
        """
        credentials = credentials or self._channel_credentials
        if credentials is None:
            channel = grpc.insecure_channel(self.address, options=options)
        else:
            channel = grpc.secure_channel(self.address, credentials, options=options)
        return self._at_end.enter_context(channel)

    def _start(self) -> None:
        config = conf.load()
        interceptors = utils.load_interceptors(
            config.interceptors if self._interceptors is None else self._interceptors
        )
        shared = _connections_to_share()
        if shared:
            interceptors.insert(0, self._at_end.enter_context(_SharedConnections(shared)))
        self._keep_query_log()
        pool = ThreadPoolExecutor(self._max_workers, thread_name_prefix="grpc-test")
        self._at_end.callback(pool.shutdown)
        server = engine.server(
            pool,
            interceptors=interceptors,
            options=list(config.options if self._options is None else self._options),
            maximum_concurrent_rpcs=config.maximum_concurrent_rpcs,
        )
        wrapper = SignalWrapper(server)
        for hook in config.servicers if self._servicers is None else self._servicers:
            add = conf.import_configured("servicers", hook) if isinstance(hook, str) else hook
            add(wrapper)
        if config.reflection:
            utils.enable_reflection(server)
        if self._server_credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", self._server_credentials)
        self.address = f"127.0.0.1:{port}"
        server.start()
        self._at_end.callback(lambda: server.stop(0).wait(PATIENCE))

    def _keep_query_log(self) -> None:
        """Keep calls from emptying the log that `assertNumQueries` counts in.

        `CaptureQueriesContext` does the same to Django's own `request_started`.
        """
        signal = signals.grpc_request_started
        if signal.disconnect(reset_queries):
            self._at_end.callback(signal.connect, reset_queries)


def _connections_to_share() -> dict[str, BaseDatabaseWrapper]:
    """Return those of this thread's connections that another could not stand in for, by alias.

    In a transaction that is all of them: those that the test may not use say so themselves.
    """
    ours = {connection.alias: connection for connection in connections.all()}
    if any(connection.in_atomic_block for connection in ours.values()):
        return ours
    return {alias: connection for alias, connection in ours.items() if _is_in_memory(connection)}


def _is_in_memory(connection: BaseDatabaseWrapper) -> bool:
    is_in_memory: Callable[[], bool] | None = getattr(connection, "is_in_memory_db", None)
    return is_in_memory is not None and is_in_memory()


class _SharedConnections(Interceptor):
    """Lends the test's connections to the thread of each call, for one call at a time.

    It is the outermost interceptor, so that the others, and the signals, have them too.
    """

    def __init__(self, shared: dict[str, BaseDatabaseWrapper]) -> None:
        self._shared = shared
        # A lock rather than a semaphore of the thread pool: an engine may run a call on a thread
        # of its own while another waits for its peer.
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        for connection in self._shared.values():
            connection.inc_thread_sharing()
        return self

    def __exit__(self, *_: object) -> None:
        # A call that outlives its test would write into the transaction of the next.
        is_quiet = self._turn.acquire(timeout=PATIENCE)
        for connection in self._shared.values():
            connection.dec_thread_sharing()
        if not is_quiet:
            raise RuntimeError(
                f"a call is still running {PATIENCE:g} s after its test has ended; have the "
                "servicer end when context.is_active() is False"
            )

    def _lend(self) -> None:
        for alias, connection in self._shared.items():
            connections[alias] = connection

    def _wait_for_turn(self, context: Any) -> None:
        remaining = context.time_remaining()
        patience = PATIENCE if remaining is None else max(0.0, min(PATIENCE, remaining))
        if not self._turn.acquire(timeout=patience):
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "another call of this test is still running, and calls inside a test's "
                "transaction run one at a time: read its responses to the end, or cancel it",
            )

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Wrap the method that the other interceptors, and the servicers, come up with."""
        self._lend()
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        make, behaviour = _parts(handler)
        if getattr(behaviour, "experimental_non_blocking", False):
            # It is done when its callback says so, which is not when it returns.
            return handler
        run = self._streaming if handler.response_streaming else self._unary
        return make(
            run(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def run(request: Any, context: Any) -> Any:
            self._wait_for_turn(context)
            try:
                self._lend()
                return behaviour(request, context)
            finally:
                self._turn.release()

        return run

    def _streaming(
        self, behaviour: Callable[[Any, Any], Iterable[Any]]
    ) -> Callable[[Any, Any], Iterator[Any]]:
        def run(request: Any, context: Any) -> Iterator[Any]:
            self._wait_for_turn(context)
            try:
                self._lend()
                yield from behaviour(request, context)
            finally:
                self._turn.release()

        return run


def _parts(handler: Any) -> tuple[Callable[..., Any], Any]:
    """Return the function that makes a handler of this kind, and its behaviour."""
    if handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler, handler.stream_stream
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary
