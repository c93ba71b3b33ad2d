"""Cursors that read in pieces, and are closed on the thread that their connection belongs to.

`QuerySet.aiterator` reads on the thread of `sync_to_async`. Where its caller goes away in between,
as a call that is cancelled does, Django leaves the generator around the cursor to the garbage
collector, which closes it on whatever thread it comes by: the event loop's, mostly. To close a
cursor of PostgreSQL's is to send a statement. So the loop would wait for the database, and should
the connection be closed meanwhile on its own thread, psycopg crashes.
"""

import contextlib
import dataclasses
import functools
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_grpc.hygiene.connection_state import has_transaction


class Home:
    """A thread, as others see it that have a cursor of one of its connections to close.

    Attributes:
        is_tended: Whether the thread closes what it is left. Otherwise nobody leaves it anything.
        left: What it has been left. Nobody is told: the garbage collector, which mostly leaves it,
            may come by anywhere, inside of a lock of whatever would have to be told even.
    """

    def __init__(self) -> None:
        """Belong to the thread that this is called on."""
        self.is_tended = False
        self.thread = threading.get_ident()
        self.left: deque[_OpenCursor] = deque()
        # No WeakSet: other threads take theirs out of it while this one looks through it.
        self._opened: set[weakref.ref[_OpenCursor]] = set()

    def open(self, connection: BaseDatabaseWrapper, cursor: Callable[[], Any]) -> Any:
        """Open a cursor, which is closed on this thread. Called on the thread itself."""
        self.close_left()  # lest they become many in a call that is long
        opening = cursor()
        opened = _OpenCursor(
            # Of the driver's: with Django's around it this would be a cycle.
            getattr(opening, "cursor", None),
            connection,
            connection.connection,
            is_bound=has_transaction(connection),
        )
        with contextlib.suppress(AttributeError, TypeError):  # a driver's own has no place for it
            opening.close = functools.partial(self._close, weakref.ref(opening), opened)
            self._opened.add(weakref.ref(opened, self._opened.discard))
        return opening

    def _close(self, opening: weakref.ref[Any], opened: "_OpenCursor") -> None:
        is_here = threading.get_ident() == self.thread
        self._opened.discard(weakref.ref(opened))
        opened.around = opening()  # the garbage collector has cleared it if it comes from there
        # Amid a collection this may be amid a statement of the connection.
        is_safe = is_here and not _is_collecting()
        if self.is_tended and not is_safe and not _is_within_process(opened.connection):
            self.left.append(opened)
        elif is_here:
            opened.close_cursor()
        else:
            opened.close()

    def close_left(self) -> None:
        """Close what others have left. Called on the thread itself."""
        for _ in range(len(self.left)):
            opened = self.left.popleft()
            if opened.may_be_gone():
                self.left.append(opened)
            else:
                opened.close()

    def has_open(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether somebody still has a cursor of a connection."""
        return any(it.connection is connection for it in self._all_open())

    def close_all(self, connection: BaseDatabaseWrapper) -> None:
        """Close what is open of a connection, as nobody uses it: it may go back to a pool.

        Called on the thread itself.
        """
        for opened in [*self._all_open(), *self.left]:
            if opened.connection is connection:
                opened.close()

    def _all_open(self) -> "list[_OpenCursor]":
        return [opened for it in list(self._opened) if (opened := it()) is not None]


@dataclasses.dataclass(eq=False, slots=True, weakref_slot=True)
class _OpenCursor:
    """A cursor that may have been closed, but not yet as far as its user is concerned."""

    cursor: Any
    # No weak reference: the garbage collector clears those first that are garbage with the cursor.
    connection: BaseDatabaseWrapper
    # The driver's, when the cursor was opened.
    its_connection: Any
    # Whether the database ends it with the transaction that it was opened in.
    is_bound: bool
    # Django's or a backend's around the driver's, while it is to be closed.
    around: Any = None

    def may_be_gone(self) -> bool:
        """Whether to close it now might be an error that ends a transaction of somebody else's."""
        return (
            self.is_bound
            and self.connection.connection is self.its_connection
            and has_transaction(self.connection)
        )

    def close(self) -> None:
        """Close it, unless its connection has gone.

        One that was closed has closed its cursors, and one that went back to a pool may be another
        thread's by now.
        """
        if self.connection.connection is self.its_connection:
            with contextlib.suppress(Exception):  # the connection may have died
                self.close_cursor()

    def close_cursor(self) -> None:
        """Close it as its class does, with whatever a backend has to do then."""
        around, self.around = self.around, None
        if around is not None:
            getattr(type(around), "close", _close_inner)(around)
        elif self.cursor is not None:
            self.cursor.close()


def _close_inner(around: Any) -> None:
    around.cursor.close()


def _is_within_process(connection: BaseDatabaseWrapper) -> bool:
    """Whether a database has no server, so that nobody is waited for.

    As SQLite, for which rows that were read in part are a lock that keeps all others from writing.
    """
    return connection.vendor == "sqlite"


# The phases of garbage collections ("start", "stop"), the last one at the end.
_collections: dict[str, Any] = {"stop": None}


def _is_collecting() -> bool:
    """Whether garbage is collected now: by this thread, or by another that waits amid of it."""
    return next(reversed(_collections)) == "start"


# No functions of Python: the interpreter would call handlers of signals in them, and drop what
# those raise. A Ctrl-C or a time limit would be lost.
gc.callbacks.append(_collections.pop)
gc.callbacks.append(_collections.setdefault)
