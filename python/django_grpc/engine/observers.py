"""Threads beside those of calls, which look on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_grpc.engine.types import Surroundings


class Observer:
    """A daemon thread that observes the calls of a server, from its start to its end.

    Attributes:
        surroundings: What is put around what it does with the project's code.
    """

    surroundings: Surroundings | None = None
    _thread: threading.Thread | None = None

    def __init__(self, name: str) -> None:
        """Prepare it.

        Args:
            name: The thread's.
        """
        self._name = name

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: The system refuses the thread.
        """
        # Made here, as CPython 3.13 starts none that was made before a fork.
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Have it end."""
        raise NotImplementedError

    def join(self, timeout: float) -> None:
        """Wait for the end, after `close`."""
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        raise NotImplementedError
