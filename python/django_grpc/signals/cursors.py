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
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper


class Home:
    """A thread, as others see it that have a cursor of one of its connections to close.

    Attributes:
        is_tended: Whether the thread closes what it is left. Otherwise nobody leaves it anything.
    """

    def __init__(self, on_left: Callable[[], object]) -> None:
        """Belong to the thread that this is called on.

        Args:
            on_left: Called on another thread that has left a cursor.
        """
        self.is_tended = False
        self.thread = threading.get_ident()
        self.on_left = on_left
        self.left: deque[_LeftCursor] = deque()

    def close_left(self) -> None:
        """Close what others have left. Called on the thread itself."""
        while self.left:
            with contextlib.suppress(Exception):  # the connection may have died
                self.left.popleft().close()


class _LeftCursor(NamedTuple):
    cursor: Any
    connection: "weakref.ref[BaseDatabaseWrapper]"
    # The driver's, when the cursor was opened.
    its_connection: Any

    def close(self) -> None:
        """Close it, unless its connection has gone.

        One that was closed has closed its cursors, and one that went back to a pool may be another
        thread's by now.
        """
        connection = self.connection()
        if connection is not None and connection.connection is self.its_connection:
            self.cursor.close()


def close_at_home(connection: BaseDatabaseWrapper, home: Home) -> None:
    """Have cursors which a thread opens of its connection be closed on that thread only."""
    if isinstance(connection, BaseDatabaseWrapper):  # and no proxy that somebody has put there
        connection.chunked_cursor = functools.partial(  # type: ignore[method-assign]
            _chunked_cursor, weakref.ref(connection), home
        )


def _chunked_cursor(reference: "weakref.ref[BaseDatabaseWrapper]", home: Home) -> Any:
    connection = reference()
    if connection is None:
        raise ReferenceError("the database connection is gone")
    cursor: Any = type(connection).chunked_cursor(connection)
    if not connection.allow_thread_sharing:
        # Of the driver's: with Django's around it this would be a cycle.
        opened = _LeftCursor(cursor.cursor, reference, connection.connection)
        cursor.close = functools.partial(_close, opened, home)
    return cursor


def _close(opened: _LeftCursor, home: Home) -> None:
    if threading.get_ident() == home.thread:
        opened.cursor.close()
    elif home.is_tended:
        home.left.append(opened)
        home.on_left()
    else:
        opened.close()
