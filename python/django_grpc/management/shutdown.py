"""How the process that serves is told to stop."""

import os
import signal
import sys
import threading
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ShutdownRequest:
    """A place to wait until SIGTERM or SIGINT comes, or something else asks to stop.

    Entered on the main thread it handles both signals until it is left; on another thread, where
    Python can't handle signals, only `request` ends the wait. A signal that comes when a stop has
    been requested ends the process at once, with the status that a shell gives a process which the
    signal killed.
    """

    def __init__(self) -> None:
        # A signal handler runs on the main thread between any two steps of what that does, so what
        # it calls must be reentrant. SimpleQueue.put is, Event.set is not.
        self._reasons: SimpleQueue[str] = SimpleQueue()
        self._is_requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_requested:
            # SIG_DFL would do nothing in a container, whose first process the kernel spares.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"Ended at once.\n")
            os._exit(128 + number)
        self.request(signal.Signals(number).name)

    def request(self, reason: str) -> None:
        """End the wait. Callable from any thread, and more than once."""
        self._is_requested = True
        self._reasons.put(reason)

    def wait(self) -> str:
        """Block until a stop is requested.

        Returns:
            The reason that was given: the name of the signal, if it was one.
        """
        return self._reasons.get()


def end_process_soon(status: int, seconds: float = 1.0) -> None:
    """End the process even if threads of it don't end.

    A call that ignores its cancellation keeps its thread, and an interpreter that exits would wait
    for that. Nothing happens if the process ends by itself in time.
    """

    def end() -> None:
        threading.Event().wait(seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    threading.Thread(target=end, name="grpcserver-end", daemon=True).start()
