"""Counting what a call asks of its databases, for the access log."""

import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_grpc.wrapping.shapes import Behavior, Shape, inside

# The call that the code which runs now belongs to. `sync_to_async` takes it along to its thread.
_current: ContextVar[Any] = ContextVar("django_grpc.queries.current", default=None)


def count_queries(path: str, shape: Shape, behavior: Behavior) -> Behavior:
    """Count the queries of each call: an instrument of `django_grpc.wrapping.wrapper`.

    A query is one execution by a cursor of Django's, `executemany` included, on whatever thread and
    connection, for as long as the context variables are the call's: in the method, in its
    generator, in what `sync_to_async` runs, in receivers of the signals. It takes as long as the
    execution does; the fetching of its rows is not in it.
    """
    return inside(behavior, shape, _Counting)


def watch_connections() -> None:
    """Have queries on all connections noticed, those that are open on this thread and later ones.

    May be called more than once.
    """
    connection_created.connect(_watch, dispatch_uid="django_grpc.queries")
    for connection in connections.all(initialized_only=True):
        _watch(connection)


def _watch(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    # At the beginning, the outermost place: who leaves a `with connection.execute_wrapper(...)`
    # takes the last one away.
    if _execute not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, _execute)


def _execute(
    execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    count = _current.get()
    if count is None:
        return execute(sql, params, many, context)
    begun = time.perf_counter_ns()
    try:
        return execute(sql, params, many, context)
    finally:
        count(time.perf_counter_ns() - begun)


class _Counting:
    """Makes a call the one whose queries are counted."""

    __slots__ = ("_count", "_token")

    _token: Token[Any]

    def __init__(self, context: Any) -> None:
        # A context that an interceptor has put around the engine's may lack it.
        self._count = getattr(context, "_count_query", None)

    def __enter__(self) -> None:
        self._token = _current.set(self._count)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.reset(self._token)
