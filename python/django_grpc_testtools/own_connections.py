"""The database connections that a server's threads open, where they use none of the test's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection
from typing import Any, Self

from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from .sharing import PATIENCE

_LOOK_AGAIN = 0.002
#: What the names of a server's threads begin with.
_OURS = ("grpc-worker", "grpc-interceptor")


class OwnConnections:
    """Sees to it that none is left when the server has stopped.

    With `CONN_MAX_AGE` a thread keeps its connection, and a test database that anyone is connected
    to can't be dropped. Each thread closes its own: those of the server as they end, and that of
    `sync_to_async`, which lives as long as the process, when it is asked. Threads that a servicer
    has made are its own.

    Args:
        shared: The test's connections that the threads have been lent, by alias.
    """

    def __init__(self, shared: Collection[str]) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._opened: list[tuple[threading.Thread, BaseDatabaseWrapper]] = []
        self._tests = threading.current_thread()
        self._others_opened = False

    def __enter__(self) -> Self:
        connection_created.connect(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        connection_created.disconnect(self._note)
        if self._others_opened:
            with contextlib.suppress(TimeoutError):
                SyncToAsync.single_thread_executor.submit(self.close).result(PATIENCE)
        end = time.monotonic() + PATIENCE
        # Those of a call that outlives its server stay open: it may be in the middle of a query.
        while self._is_one_open() and time.monotonic() < end:
            time.sleep(_LOOK_AGAIN)

    def close(self) -> None:
        """Close the connections of this thread that are not the test's."""
        for connection in connections.all(initialized_only=True):
            if connection.alias not in self._shared:
                connection.close()

    def _note(self, *, connection: BaseDatabaseWrapper, **_: Any) -> None:
        thread = threading.current_thread()
        with self._lock:
            if thread.name.startswith(_OURS):
                self._opened.append((thread, connection))
            elif thread is not self._tests:
                self._others_opened = True

    def _is_one_open(self) -> bool:
        with self._lock:
            return any(
                thread.is_alive() and connection.connection is not None
                for thread, connection in self._opened
            )
