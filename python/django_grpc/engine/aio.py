"""The engine as a `grpc.aio.Server`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from django_grpc.engine.options import ChannelArgument, items, server_settings
from django_grpc.engine.sync import Server as ThreadedServer
from django_grpc.greenlets import refuse_patched_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from django_grpc.engine.call_log import CallRecord
    from django_grpc.engine.credentials import ServerCredentials
    from django_grpc.engine.health import Monitor
    from django_grpc.engine.types import GenericHandler, MethodHandler, Surroundings

__all__ = ["Server", "server"]


class Server(grpc.aio.Server):
    """A `grpc.aio.Server` with grpcio's semantics.

    Its async methods run on the loop that `start` is called on; ordinary ones run on worker
    threads, as on `django_grpc.engine.server`. Coroutines are called on that loop; the other
    methods may be called from any thread before `start`.
    """

    def __init__(
        self,
        settings: Mapping[str, int],
        handlers: Sequence[GenericHandler],
        interceptors: Sequence[Any],
    ) -> None:
        """Create a server; `django_grpc.engine.aio.server` is the public way."""
        self._inner = ThreadedServer(settings, handlers, interceptors, is_aio=True)
        self.health = self._inner.health
        self._loop: asyncio.AbstractEventLoop | None = None
        # Set on the loop when the last connection has gone and the last task has ended.
        self._stopped = asyncio.Event()
        self._winding_up: asyncio.Task[None] | None = None

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[GenericHandler]) -> None:
        """Add handlers that are asked, in order, for methods that are not registered."""
        self._inner.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, MethodHandler]
    ) -> None:
        """Register a service's methods; they go before generic handlers."""
        self._inner.add_registered_method_handlers(service_name, method_handlers)

    def method_handlers(self) -> dict[str, MethodHandler]:
        """Return the method handlers that are known by path, `/package.Service/Method`."""
        return self._inner.method_handlers()

    @property
    def knows_all_methods(self) -> bool:
        """Whether there is no generic handler that only answers when it is asked."""
        return self._inner.knows_all_methods

    def set_method_limits(self, pattern: str, **limits: Any) -> None:
        """Limit what methods may cost; see `django_grpc.engine.sync.Server.set_method_limits`."""
        self._inner.set_method_limits(pattern, **limits)

    def add_metrics_port(self, address: str) -> int:
        """Serve figures over HTTP; see `django_grpc.engine.sync.Server.add_metrics_port`."""
        return self._inner.add_metrics_port(address)

    def add_insecure_port(self, address: str) -> int:
        """Bind `address` for plaintext and return its port.

        Raises:
            RuntimeError: The address cannot be bound; its cause is the `OSError`.
        """
        return self._inner.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Bind `address` for TLS and return its port.

        Raises:
            TypeError: The credentials are not those of `django_grpc.engine`.
            RuntimeError: The address cannot be bound; its cause is the `OSError`.
        """
        return self._inner.add_secure_port(address, server_credentials)

    def enable_health(
        self, *, max_queue_wait: float | None = None, monitor: Monitor | None = None
    ) -> None:
        """Answer ``grpc.health.v1.Health`` from the start on; see `Health.enable`.

        Raises:
            ValueError: The server has been started.
        """
        self._inner.enable_health(max_queue_wait=max_queue_wait, monitor=monitor)

    def announce_shutdown(self) -> None:
        """Have the health say NOT_SERVING from now on, and serve as ever."""
        self._inner.announce_shutdown()

    def log_calls(
        self,
        write: Callable[[list[CallRecord], int], None],
        *,
        sample: float = 1.0,
        slow: float = 0.0,
    ) -> None:
        """Have calls written down; see `django_grpc.engine.sync.Server.log_calls`."""
        self._inner.log_calls(write, sample=sample, slow=slow)

    def surround_calls(self, surroundings: Surroundings) -> None:
        """Have something called around calls; see `django_grpc.engine.sync.Server`."""
        self._inner.surround_calls(surroundings)

    def watch_calls(self, seconds: float) -> None:
        """Log calls that run for long; see `django_grpc.engine.sync.Server.watch_calls`."""
        self._inner.watch_calls(seconds)

    def adopt_connections(
        self, intake: int, released: int, server_credentials: ServerCredentials | None = None
    ) -> None:
        """Serve connections that another process accepts; see `django_grpc.engine.sync.Server`."""
        self._inner.adopt_connections(intake, released, server_credentials)

    async def start(self) -> None:
        """Start serving, with async methods on the running loop. A second call does nothing.

        Raises:
            grpc.aio.UsageError: The server has been stopped.
            RuntimeError: As `django_grpc.engine.sync.Server.start`.
        """
        refuse_patched_threads()
        if self._inner.has_stopped():
            raise grpc.aio.UsageError("Server not in ready state")
        if self._loop is not None:
            return
        loop = asyncio.get_running_loop()
        try:
            self._inner.start_on(loop, self._on_stopped)
        except BaseException:
            if self._inner.has_stopped():
                self._stopped.set()
            raise
        self._loop = loop

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new calls at once, and return when those in flight have ended.

        May be called several times; the shortest grace counts.

        Args:
            grace: Seconds after which calls in flight are cancelled; `None` cancels them now.
        """
        if self._loop is None or self._inner.is_lost:
            self._inner.stop(None)
            self._stopped.set()
            return
        self._inner.drain(0.0 if grace is None else grace)
        if grace is not None and not await self._ends_within(grace):
            grace = None
        if grace is None:
            self._inner.cancel_all_calls()
        await self._stopped.wait()

    def stop_without_loop(self) -> None:
        """Stop at once, and wait for that, where the loop does not run any more."""
        if self._loop is not None:
            self._inner.lose_loop(self._loop)
        self._inner.stop(None)
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped.

        Returns:
            True when `timeout` seconds passed first, as grpcio has it.
        """
        return not self._inner.is_lost and not await self._ends_within(timeout)

    async def _ends_within(self, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    def join(self, timeout: float) -> bool:
        """Wait for the ordinary methods of a server that has stopped; not on the loop.

        See `django_grpc.engine.sync.Server.join`.
        """
        return self._inner.join(timeout)

    def on_worker_exit(self, callback: Callable[[], object]) -> None:
        """Have `callback` called on each worker thread before it ends."""
        self._inner.on_worker_exit(callback)

    def statistics(self) -> dict[str, int]:
        """Return figures of calls, connections and workers."""
        return self._inner.statistics()

    def _on_stopped(self) -> None:
        # On the control thread; the loop may have been closed under a server that nobody stopped.
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._wind_up)
            except RuntimeError:
                self._inner.native.detach_loop()

    def _wind_up(self) -> None:
        if self._loop is not None and self._winding_up is None:
            self._winding_up = self._loop.create_task(self._leave(self._loop))

    async def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self._inner.leave(loop)
        finally:
            self._stopped.set()


def server(
    migration_thread_pool: Executor | None = None,
    handlers: Sequence[GenericHandler] | None = None,
    interceptors: Sequence[Any] | None = None,
    options: Sequence[ChannelArgument] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
) -> Server:
    """Create a server, as `grpc.aio.server` does.

    Args:
        migration_thread_pool: Says by its size how many ordinary methods may run at the same time;
            see `django_grpc.engine.server`.
        handlers: Generic handlers, asked in order for methods that are not registered.
        interceptors: `grpc.aio.ServerInterceptor`s and ordinary ones, the first one outermost. An
            ordinary one runs on a thread.
        options: `grpc.*` channel arguments; see `django_grpc.engine.options`.
        maximum_concurrent_rpcs: Calls beyond it are answered RESOURCE_EXHAUSTED.
        compression: How responses are compressed, unless a call says otherwise.

    Returns:
        A server that is not started; `add_insecure_port` or `add_secure_port`, then `start` it.

    Raises:
        TypeError: An argument that is a list is none, or `maximum_concurrent_rpcs` no whole number.
        ValueError: `maximum_concurrent_rpcs` is not above 0, an option has a value of the wrong
            type, `compression` is no `grpc.Compression`, or something among the interceptors is
            none.
    """
    settings = server_settings(
        migration_thread_pool, items("options", options), maximum_concurrent_rpcs, compression
    )
    if settings.get("maximum_concurrent_rpcs", 1) <= 0:
        raise ValueError("maximum_concurrent_rpcs should be a positive integer")  # as grpcio says
    return Server(settings, items("handlers", handlers), items("interceptors", interceptors))
