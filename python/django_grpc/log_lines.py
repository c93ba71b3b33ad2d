"""The thread that writes log lines for threads that must not wait for the project's handlers."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from django_grpc.logs import GuardedLogger, guarded, relieve_this_thread

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

logger = GuardedLogger("django_grpc")

#: Lines that may wait. Those beyond are dropped, and counted.
_MOST: Final = 1000
#: Seconds that the last lines of a thread get to be written.
_TIMEOUT: Final = 1.0


class LogLineThread:
    """A daemon thread that handles records, from the first of them on.

    Attributes:
        around: Makes what is entered around each line.
    """

    around: Callable[[], AbstractContextManager[None]]

    def __init__(self) -> None:
        """Start no thread yet."""
        self.around = contextlib.nullcontext
        # Reentrant: what the garbage collector runs may log in the middle of `take`.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[tuple[logging.Logger, logging.LogRecord]] = deque()
        self._dropped = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def take(self, to: logging.Logger, record: logging.LogRecord) -> bool:
        """Have a record handled soon, as a `django_grpc.logs.HandOver`; never waits.

        Returns:
            False when there is no thread for it: it has ended, or can't be started.
        """
        with self._changed:
            if self._is_closed:
                return False
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="grpc-log", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
            if len(self._lines) < _MOST:
                self._lines.append((to, record))
            else:
                self._dropped += 1
            self._changed.notify()
        return True

    def close(self) -> None:
        """Take no more lines, and end when those that there are have been written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the end, after `close`."""
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while self._wait_for_line():
            with self.around():
                self._write()

    def _wait_for_line(self) -> bool:
        with self._changed:
            while not self._lines and not self._is_closed:
                self._changed.wait()
            return bool(self._lines)

    def _write(self) -> None:
        with self._changed:
            to, record = self._lines.popleft()
            dropped, self._dropped = self._dropped, 0
        with guarded():
            to.handle(record)
        if dropped:
            logger.warning("%d log lines were lost: the log could not keep up", dropped)


@contextlib.contextmanager
def relieved_of_lines() -> Iterator[None]:
    """Have another thread write what this one logs; wait for it at the end, a second at most."""
    lines = LogLineThread()
    relieve_this_thread(lines.take)
    try:
        yield
    finally:
        lines.close()
        lines.join(_TIMEOUT)
