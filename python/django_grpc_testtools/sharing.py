"""The test's database connections, lent to whatever threads a call's code runs on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import grpc
from asgiref.sync import SyncToAsync, iscoroutinefunction
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_grpc.engine.coroutines import Colour, colour
from django_grpc.engine.types import AsyncServicerContext, Interceptor

#: Seconds that a call waits for the one before it, and the end of a test for the last one.
PATIENCE = 10.0

#: Seconds after which an async method looks again whether it is its turn.
_LOOK_AGAIN = 0.002

_BUSY = (
    "another call of this test is still running, and calls inside a test's transaction run one at "
    "a time: read its responses to the end, or cancel it"
)

_BUSY_THREAD = (
    "the thread of sync_to_async is busy, and async methods need it for the test's connections: "
    "does the test call by way of sync_to_async? Use a channel of grpc.aio, or asyncio.to_thread"
)


def connections_to_share() -> dict[str, BaseDatabaseWrapper]:
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


def _lend(shared: dict[str, BaseDatabaseWrapper]) -> None:
    """Have this thread use these connections."""
    for alias, connection in shared.items():
        connections[alias] = connection


class SharedConnections(Interceptor):
    """Lends the test's connections to the threads of each call, for one call at a time.

    It is the outermost interceptor, so that the others, and the signals, have them too. Threads of
    the server end with it. The thread of `sync_to_async` is the process's: it is lent them from the
    start, and gets its own back at the end.
    """

    def __init__(self, shared: dict[str, BaseDatabaseWrapper]) -> None:
        self._shared = shared
        # A lock rather than a semaphore of the thread pool: an engine may run a call on a thread
        # of its own while another waits for its peer, and async methods have no thread.
        self._turn = threading.Lock()
        self._sync_thread = _SyncThread(shared)
        self._has_async_interceptors = False

    def __enter__(self) -> Self:
        for connection in self._shared.values():
            connection.inc_thread_sharing()
        # From now on: what an async test makes by itself is the test's as well.
        self._sync_thread.begin()
        return self

    def __exit__(self, *_: object) -> None:
        # A call that outlives its test would write into the transaction of the next.
        is_quiet = self._turn.acquire(timeout=PATIENCE)
        is_quiet = self._sync_thread.give_back() and is_quiet
        for connection in self._shared.values():
            connection.dec_thread_sharing()
        if not is_quiet:
            raise RuntimeError(
                f"a call is still running {PATIENCE:g} s after its test has ended; have the "
                "servicer end when context.is_active() is False"
            )

    def around(self, interceptors: Iterable[Any]) -> list[Any]:
        """Return the interceptors that a server needs, in place of those given."""
        interceptors = list(interceptors)
        self._has_async_interceptors = any(map(_is_async, interceptors))
        if self._has_async_interceptors:
            # Now the engine runs each ordinary one on another thread.
            interceptors = [
                _Borrower(it, self._shared) if _is_ordinary(it) else it for it in interceptors
            ]
        return [self, *interceptors]

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Wrap the method that the other interceptors, and the servicers, come up with.

        It is not on an asyncio loop, even if the others are, and so it may wait.
        """
        _lend(self._shared)
        if self._has_async_interceptors and not self._sync_thread.lend():
            return _aborting(_BUSY_THREAD)
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        make, behaviour = _parts(handler)
        if getattr(behaviour, "experimental_non_blocking", False):
            # It is done when its callback says so, which is not when it returns.
            return handler
        kind = colour(behaviour)
        if kind is Colour.PLAIN:
            run = self._streaming if handler.response_streaming else self._unary
        else:
            if not self._sync_thread.lend():
                return _aborting(_BUSY_THREAD)
            run = self._coroutine if kind is Colour.COROUTINE else self._async_generator
        return make(
            run(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    # On a worker thread

    def _wait_for_turn(self, context: Any) -> None:
        if not self._turn.acquire(timeout=_patience_with(context)):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, _BUSY)

    def _unary(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def run(request: Any, context: Any) -> Any:
            self._wait_for_turn(context)
            try:
                _lend(self._shared)
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
                _lend(self._shared)
                yield from behaviour(request, context)
            finally:
                self._turn.release()

        return run

    # On an asyncio loop

    @asynccontextmanager
    async def _its_turn(self, context: AsyncServicerContext) -> AsyncIterator[None]:
        end = time.monotonic() + _patience_with(context)
        # Asked again and again: a task that is cancelled while it waits leaves nothing behind.
        while not self._turn.acquire(blocking=False):
            if time.monotonic() >= end:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, _BUSY)
            await asyncio.sleep(_LOOK_AGAIN)
        try:
            yield
        except BaseException:
            # A coroutine that is cancelled doesn't wait for what it has given to sync_to_async:
            # the next call's turn comes after that.
            SyncToAsync.single_thread_executor.submit(self._turn.release)
            raise
        else:
            self._turn.release()

    def _coroutine(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def run(request: Any, context: AsyncServicerContext) -> Any:
            async with self._its_turn(context):
                return await behaviour(request, context)

        return run

    def _async_generator(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def run(request: Any, context: AsyncServicerContext) -> AsyncIterator[Any]:
            async with self._its_turn(context), aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return run


class _Borrower(Interceptor):
    """An ordinary interceptor, with the test's connections on the thread that it is run on."""

    def __init__(self, interceptor: Any, shared: dict[str, BaseDatabaseWrapper]) -> None:
        self._interceptor = interceptor
        self._shared = shared

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Be the interceptor's."""
        _lend(self._shared)
        return self._interceptor.intercept_service(continuation, handler_call_details)


class _SyncThread:
    """The one thread of a process on which asgiref runs thread-sensitive code of asyncio loops.

    That is what `sync_to_async` uses where no `async_to_sync` waits further up, as on the loop of a
    server or of an async test. It lives as long as the process, with connections of its own.
    """

    def __init__(self, shared: dict[str, BaseDatabaseWrapper]) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._lending: Future[None] | None = None
        self._own: dict[str, BaseDatabaseWrapper] = {}
        self._ident: int | None = None

    def begin(self) -> Future[None]:
        """Have it use the shared connections for what it is given from now on."""
        with self._lock:
            if self._lending is None:
                self._lending = SyncToAsync.single_thread_executor.submit(self._take)
            return self._lending

    def lend(self) -> bool:
        """Wait until it uses the shared connections.

        Returns:
            False when it was busy for `PATIENCE` seconds.
        """
        lending = self.begin()
        try:
            lending.result(PATIENCE)
        except (TimeoutError, CancelledError):  # the latter when the test has ended meanwhile
            return False
        return True

    def give_back(self) -> bool:
        """Have it use its own connections again, when it has done what it was given before.

        Returns:
            False when it was still busy after `PATIENCE` seconds.
        """
        if self._lending is None or self._lending.cancel():
            return True
        if threading.get_ident() == self._ident:
            self._restore()
            return True
        try:
            SyncToAsync.single_thread_executor.submit(self._restore).result(PATIENCE)
        except TimeoutError:
            return False
        return True

    def _take(self) -> None:
        self._ident = threading.get_ident()
        self._own = {it.alias: it for it in connections.all(initialized_only=True)}
        _lend(self._shared)

    def _restore(self) -> None:
        for alias in self._shared:
            if alias in self._own:
                connections[alias] = self._own[alias]
            else:
                del connections[alias]


def _is_async(interceptor: Any) -> bool:
    return iscoroutinefunction(getattr(interceptor, "intercept_service", None))


def _is_ordinary(interceptor: Any) -> bool:
    # What is no interceptor at all is the engine's to refuse.
    return hasattr(interceptor, "intercept_service") and not _is_async(interceptor)


def _patience_with(context: Any) -> float:
    """Return the seconds that a call may wait for its turn."""
    remaining: float | None = context.time_remaining()
    return PATIENCE if remaining is None else max(0.0, min(PATIENCE, remaining))


def _aborting(details: str) -> Any:
    """Return the handler of a call that can't run, of whatever kind: it asks for no request."""

    def abort(requests: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, details)

    return grpc.stream_stream_rpc_method_handler(abort)


def _parts(handler: Any) -> tuple[Callable[..., Any], Any]:
    """Return the function that makes a handler of this kind, and its behaviour."""
    if handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler, handler.stream_stream
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary
