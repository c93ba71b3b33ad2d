"""What is known of one connection beyond what Django knows."""

import weakref
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_grpc.hygiene.atomic_blocks import LostBlocks
from django_grpc.hygiene.cursors import Home
from django_grpc.hygiene.loop_calls import Owner

_NAME = "_django_grpc_record"


class ConnectionRecord:
    """What is known of one connection.

    It is among the connection's attributes, so that it is found through a proxy too.
    """

    def __init__(self, connection: BaseDatabaseWrapper, home: Home) -> None:
        self.connection = weakref.ref(connection)
        #: The thread that it belongs to.
        self.home = home
        #: The transactions that were ended from under who was in them.
        self.lost = LostBlocks(connection)
        #: The call that used it last outside of a transaction: whose is one that is open now.
        self.owner: Owner = None

    def __reduce__(self) -> Any:
        """Be nothing in what is pickled, or copied with all that it holds."""
        return type(None), ()


def record_of(connection: Any) -> ConnectionRecord | None:
    """Return what is known of a connection, also of one behind a proxy."""
    try:
        record = getattr(connection, _NAME, None)
    except Exception:  # a backend's own, which knows no such name
        return None
    return record if isinstance(record, ConnectionRecord) else None


def record_for(connection: BaseDatabaseWrapper, home: Home) -> ConnectionRecord | None:
    """Return what is known of a connection that is about to be used, on the thread that uses it.

    Args:
        connection: None that is behind a proxy.
        home: The thread's.

    Returns:
        None for a connection that another thread has lent before anything was known of it.
    """
    record = record_of(connection)
    if record is not None and record.connection() is connection:  # else it is a copy
        return record
    if thread_of(connection) != home.thread:
        return None
    record = ConnectionRecord(connection, home)
    vars(connection)[_NAME] = record  # a backend may refuse names that it does not know
    return record


def thread_of(connection: Any) -> int | None:
    """Return which thread has made a connection.

    Django says it nowhere else, and compares it with the thread that uses one.
    """
    return getattr(connection, "_thread_ident", None)


def real(connection: Any) -> Any:
    """Return the connection behind a proxy, as far as it is known, or what was given."""
    record = record_of(connection)
    return connection if record is None else record.connection() or connection
