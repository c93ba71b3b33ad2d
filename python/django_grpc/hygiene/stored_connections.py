"""Where Django keeps the connections of a thread."""

import threading
from collections.abc import Collection, Mapping
from typing import Any

from django import db


class StoredConnections:
    """What Django keeps as the connections of the thread that makes this.

    That is always asked, as code may put there what it likes. ``connections.all()``, which tells,
    costs some microseconds for each database, though, and each call asks it several times. So this
    looks where it looks, and asks it where there is nothing of the kind.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._handler: Any = None
        self._kept: Mapping[str, Any] | None = None
        self._seen: Collection[Any] = ()
        self._find()

    def here(self) -> Collection[Any]:
        """Return them. Called on the thread, and not to be kept: it changes with what it shows."""
        if db.connections is not self._handler:  # somebody has put another one there
            self._find()
        if self._kept is not None:
            return self._kept.values()
        self._seen = self._handler.all(initialized_only=True)
        return self._seen

    def all(self) -> Collection[Any]:
        """Return them. Other threads are told what the thread was told last, if need be."""
        if threading.get_ident() == self._thread:
            return list(self.here())
        return self._seen if self._kept is None else list(self._kept.values())

    def check(self) -> None:
        """See whether they are where this looks for them. Called on the thread."""
        if self._kept is not None:
            kept = {id(it) for it in self._kept.values()}
            if any(id(it) not in kept for it in self._handler.all(initialized_only=True)):
                self._kept = None

    def _find(self) -> None:
        self._handler = db.connections
        try:
            self._kept = vars(self._handler._connections._storage)
        except (AttributeError, TypeError):
            self._kept = None
        self.check()
