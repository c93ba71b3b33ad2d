"""Cursors that read in pieces, and are closed on the thread that their connection belongs to.

`QuerySet.aiterator` reads on the thread of `sync_to_async`. Where its caller goes away in between,
as a call that is cancelled does, Django leaves the generator around the cursor to the garbage
collector, which closes it on whatever thread it comes by: the event loop's, mostly. To close a
cursor of PostgreSQL's is to send a statement. So the loop would wait for the database, and should
the connection be closed meanwhile on its own thread, psycopg crashes.
"""

import contextlib
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

#: Cursors that other threads have left to one thread, which closes them in its time.
Left = deque[Any]


def close_at_home(
    connection: BaseDatabaseWrapper, home: Left, on_left: Callable[[], object]
) -> None:
    """Have cursors which this thread opens of a connection be closed on this thread only.

    Args:
        connection: This thread's.
        home: This thread's, which calls `close_left` with it from time to time.
        on_left: Called on another thread that has left one.
    """
    if not isinstance(connection, BaseDatabaseWrapper):
        return  # a proxy that somebody has put in its place
    connection.chunked_cursor = functools.partial(  # type: ignore[method-assign]
        _chunked_cursor, weakref.ref(connection), home, on_left
    )


def close_left(home: Left) -> None:
    """Close what others have left to this thread."""
    while home:
        with contextlib.suppress(Exception):  # the connection has gone, and the cursor with it
            home.popleft().close()


def _chunked_cursor(
    reference: "weakref.ref[BaseDatabaseWrapper]", home: Left, on_left: Callable[[], object]
) -> Any:
    connection = reference()
    if connection is None:
        raise ReferenceError("the database connection is gone")
    cursor: Any = type(connection).chunked_cursor(connection)
    if not connection.allow_thread_sharing:
        # Of the driver's: with Django's around it this would be a cycle.
        cursor.close = functools.partial(
            _close, cursor.cursor, home, on_left, threading.get_ident()
        )
    return cursor


def _close(cursor: Any, home: Left, on_left: Callable[[], object], thread: int) -> None:
    if threading.get_ident() == thread:
        cursor.close()
    else:
        home.append(cursor)
        on_left()
