"""How a thread that looks again and again is told to end."""

from __future__ import annotations

import queue


class Ending:
    """An event for one thread that waits, set for good.

    It may be set by that thread amid its own wait: a server that nobody refers to any more is
    finalized wherever garbage is collected. `threading.Event` would wait for itself there.
    """

    def __init__(self) -> None:
        """Begin without it."""
        self._is_set = False
        # Its `put` may come amid its `get`.
        self._wake_ups: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Have it come."""
        self._is_set = True
        self._wake_ups.put(None)

    def is_set(self) -> bool:
        """Whether it has come."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait for it, for so many seconds at most, and return whether it has come."""
        if not self._is_set:
            try:
                self._wake_ups.get(timeout=seconds)
            except queue.Empty:
                pass
        return self._is_set
