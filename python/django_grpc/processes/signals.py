"""Signals as events of a selector."""

import contextlib
import signal
import socket
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Self


class SignalQueue:
    """The signals that came, in order; a selector can wait for its descriptor.

    Entered on the main thread, it takes the signals over until it is left.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        """Name the signals."""
        self._numbers = tuple(numbers)
        self._pending: list[signal.Signals] = []
        self._previous: dict[signal.Signals, Any] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._previous_descriptor = -1

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has come."""
        return self._reader.fileno()

    def __enter__(self) -> Self:
        """Take the signals over."""
        # The descriptor only wakes: when it is full, as after a long pause, it does so already.
        self._previous_descriptor = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_descriptor)
        self._reader.close()
        self._writer.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending.append(signal.Signals(number))

    def take(self) -> list[signal.Signals]:
        """Return the signals that have come since the last time."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        # A handler may run between any two of these steps, and then adds to one list or the other.
        taken, self._pending = self._pending, []
        return taken
