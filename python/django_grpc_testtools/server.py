"""The engine in the test's process, inside the test's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from django.db import reset_queries

from django_grpc import building, conf, engine, health, signals
from django_grpc.health import enabling
from django_grpc.wrapping.wrapper import SignalWrapper

from .own_connections import OwnConnections
from .sharing import PATIENCE, SharedConnections, connections_to_share

Hook = str | Callable[[Any], Any]
Stub = TypeVar("Stub")


class InProcessServer:
    """A server on a free port of the loopback interface; a context manager that starts it.

    Where the test runs in a transaction (`django.test.TestCase`, pytest-django's `db`), the
    servicers run in it too: the server's threads, and the one on which `sync_to_async` and with it
    the ORM of async methods runs, use the test's own database connections. Those cannot do two
    things at once, so calls run one after the other. A call that can't begin
    because the one before it is still running, for example a stream that the test has not read to
    its end, or a servicer that calls its own server, is aborted after `PATIENCE` seconds with
    FAILED_PRECONDITION.

    Without a transaction (`TransactionTestCase`, pytest-django's `transactional_db`) the threads
    open connections as in production, but to an SQLite database in memory, which is shared then
    too. They are closed when the server stops, so that the test database can be dropped.

        with InProcessServer(servicers=["shop.servicers.grpc_hook"]) as server:
            reply = server.stub(ShopStub).GetItem(ItemRequest(id=1), timeout=5)

    Args:
        servicers: Dotted paths or functions that add servicers to a server. The default are
            those of `settings.GRPCSERVER`.
        interceptors: Dotted paths of interceptor classes, or interceptors. The default are those
            of `settings.GRPCSERVER`.
        options: Channel arguments. The default are those of `settings.GRPCSERVER`.
        max_workers: How many calls run at once; more than one only where nothing is shared.
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
        if isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1:
            raise ValueError(f"max_workers must be a whole number from 1 on, not {max_workers!r}.")
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
            self.address = ""
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.address, self._channel = "", None
        self._at_end.close()

    @property
    def channel(self) -> grpc.Channel:
        """A channel to the server; it is closed when the server stops."""
        if self._channel is None:
            self._channel = self.open_channel()
        return self._channel

    def stub(self, stub_class: Callable[[grpc.Channel], Stub]) -> Stub:
        """Return a stub of a generated class, on `channel`.

        Raises:
            TypeError: It is no class.
        """
        channel = self.channel
        try:
            return stub_class(channel)
        except TypeError as error:
            raise TypeError(
                f"stub() takes a generated class of stubs, as ShopStub, not {stub_class!r}."
            ) from error

    def open_channel(
        self,
        options: Sequence[tuple[str, Any]] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> grpc.Channel:
        """Return one more channel; it is closed when the server stops.

        Args:
            options: Channel arguments; the default are none.
            credentials: The default are the server's `channel_credentials`.

        Raises:
            RuntimeError: The server does not run.
        """
        if not self.address:
            raise RuntimeError(
                "The InProcessServer does not run. Use it in a `with` statement: "
                "with InProcessServer(...) as server."
            )
        credentials = credentials or self._channel_credentials
        if credentials is None:
            channel = grpc.insecure_channel(self.address, options=options)
        else:
            channel = grpc.secure_channel(self.address, credentials, options=options)
        return self._at_end.enter_context(channel)

    def _start(self) -> None:
        config = conf.load()
        if self._interceptors is None:
            interceptors = building.load_interceptors(config.interceptors)
        else:
            _require_list("interceptors", self._interceptors)
            interceptors = building.load_interceptors(self._interceptors, "interceptors")
        instruments = building.load_instruments(config, interceptors)
        shared = connections_to_share()
        if shared:
            sharing = self._at_end.enter_context(SharedConnections(shared))
            interceptors = sharing.around(interceptors)
        self._keep_query_log()
        # A thread more is for the call that says it can't have its turn, as it can't if a servicer
        # that keeps the only other one has made it.
        workers = self._max_workers + bool(shared)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="grpc-test")
        self._at_end.callback(pool.shutdown)
        server = engine.server(
            pool,
            interceptors=interceptors,
            options=list(config.options if self._options is None else self._options),
            maximum_concurrent_rpcs=config.maximum_concurrent_rpcs,
        )
        own = self._at_end.enter_context(OwnConnections(shared))
        server.on_worker_exit(own.close)
        wrapper = SignalWrapper(server, instruments)
        if self._servicers is None:
            hooks = _hooks(config.servicers, None)
        else:
            hooks = _hooks(self._servicers, "servicers")
        for add in hooks:
            with wrapper.in_hook(f"The hook {add!r}"):
                add(wrapper)
        self._at_end.enter_context(health.isolated())
        enabling.enable(server, config.health, with_checks=False)
        if config.reflection:
            building.enable_reflection(server)
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


def _hooks(servicers: Iterable[Hook], place: str | None) -> Iterator[Callable[[Any], Any]]:
    _require_list("servicers", servicers)
    for hook in servicers:
        if not isinstance(hook, str) and (isinstance(hook, type) or not callable(hook)):
            raise TypeError(f"servicers holds {hook!r}, which is no dotted path and no function.")
        if isinstance(hook, str):
            yield conf.import_configured("servicers", hook, place)
        else:
            yield hook


def _require_list(name: str, value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list, not {value!r}.")
