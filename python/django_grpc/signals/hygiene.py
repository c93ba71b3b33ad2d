"""What Django's stock request receivers do, at a price that fits a call of some 20 µs.

``reset_queries``, ``close_old_connections`` and ``close_caches`` walk every configured alias each
time, through ``asgiref.local.Local``: 5 to 7 µs for each receiver with one alias. The functions
here do the same work for what the thread really holds.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.cache import caches, close_caches
from django.core.cache.backends.base import BaseCache
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils.module_loading import import_string


class _Shared:
    """The connections of one thread, for another one to look at."""

    connections: tuple[BaseDatabaseWrapper, ...] = ()


class _ThreadConnections(threading.local):
    """The database connections that the stock receivers would visit on this thread.

    A connection that is not open is nothing to those receivers, and one that opens says so by
    ``connection_created`` on the thread that opened it: the tuple is taken then, and when a thread
    asks for the first time.
    """

    def __init__(self) -> None:
        self.shared = _Shared()
        self.refresh()

    def refresh(self) -> None:
        # A connection that is shared between threads (inc_thread_sharing, which only tests call)
        # is its owner's to close: it carries the transaction of the test.
        self.all: tuple[BaseDatabaseWrapper, ...] = tuple(
            connection
            for connection in connections.all(initialized_only=True)
            if not connection.allow_thread_sharing
        )
        self.shared.connections = self.all


_thread = _ThreadConnections()

# What the thread has on which `sync_to_async` runs thread-sensitive code, and with it the ORM of
# async methods; None when that has to be asked.
_sync_thread: _Shared | None = _Shared()


def _remember_connections(**kwargs: Any) -> None:
    global _sync_thread
    _thread.refresh()
    if _thread.shared is not _sync_thread:
        # Perhaps this is the thread of sync_to_async: who sends signals on a loop looks again.
        _sync_thread = None


connection_created.connect(
    _remember_connections, dispatch_uid="django_grpc.signals.hygiene.connections"
)


def reset_queries() -> None:
    """Do what ``django.db.reset_queries`` does."""
    for connection in _thread.all:
        connection.queries_log.clear()


_stock_rule = BaseDatabaseWrapper.close_if_unusable_or_obsolete


def close_old_connections() -> None:
    """Do what ``django.db.close_old_connections`` does."""
    for connection in _thread.all:
        if connection.connection is None:
            continue
        # The conditions of close_if_unusable_or_obsolete(), asked beforehand because the method
        # costs three times as much. It decides whenever one of them fails, and always for a
        # backend that has a rule of its own.
        if (
            not connection.errors_occurred
            and connection.autocommit == connection.settings_dict["AUTOCOMMIT"]
            and (connection.close_at is None or time.monotonic() < connection.close_at)
            and type(connection).close_if_unusable_or_obsolete is _stock_rule
        ):
            connection.health_check_done = False  # type: ignore[attr-defined] # not in its stubs
        else:
            connection.close_if_unusable_or_obsolete()


# The CACHES setting that was looked at last, and whether a backend of it does something when it is
# closed: most inherit BaseCache.close, which does nothing. One tuple, so that threads which change
# it at once leave a consistent pair.
_cache_knowledge: tuple[object, bool] = (None, True)


def close_used_caches() -> None:
    """Do what ``django.core.cache.close_caches`` does."""
    settings, has_work = _cache_knowledge
    if settings is not caches.settings:  # another object once a test has overridden it
        has_work = _look_at_caches()
    if has_work:
        close_caches()


def _look_at_caches() -> bool:
    global _cache_knowledge
    settings = caches.settings
    has_work = any(
        import_string(parameters["BACKEND"]).close is not BaseCache.close
        for parameters in settings.values()
    )
    _cache_knowledge = (settings, has_work)
    return has_work


# On an asyncio loop: connections belong to the thread of `sync_to_async`, and a hop to it costs
# more than a call does. So the loop looks at them itself, and hops when there is something
# to do.


def has_async_work(functions: Iterable[Callable[[], None]]) -> bool:
    """Whether some of the functions of this module would do something for code on a loop."""
    thread = _sync_thread
    if thread is None:
        return True
    for function in functions:
        if function is close_used_caches:
            settings, has_work = _cache_knowledge
            if settings is not caches.settings:
                has_work = _look_at_caches()
            if has_work:
                return True
        elif function is close_old_connections:
            if any(map(_wants_attention, thread.connections)):
                return True
        else:
            for connection in thread.connections:
                connection.queries_log.clear()
    return False


def _wants_attention(connection: BaseDatabaseWrapper) -> bool:
    """Whether `close_if_unusable_or_obsolete` might close a connection of another thread."""
    # Inside of a transaction it does nothing, and one that is under way is none of this call's.
    if connection.connection is None or connection.in_atomic_block:
        return False
    connection.health_check_done = False  # type: ignore[attr-defined] # not in its stubs
    return (
        connection.errors_occurred
        or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
        or (connection.close_at is not None and time.monotonic() >= connection.close_at)
        or type(connection).close_if_unusable_or_obsolete is not _stock_rule
    )


async def run_async(functions: Iterable[Callable[[], None]]) -> None:
    """Run functions of this module for code on a loop, on the thread of `sync_to_async`."""
    global _sync_thread
    _sync_thread = await sync_to_async(_run_here)(functions)


def _run_here(functions: Iterable[Callable[[], None]]) -> _Shared:
    for function in functions:
        function()
    return _thread.shared
