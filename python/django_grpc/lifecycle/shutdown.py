"""How the process that serves is told to stop."""

import os
import signal
import threading
import time
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, Self

from django_grpc.lifecycle.stop_signals import (
    SIGNALS,
    TOGETHER,
    Waker,
    end_at_once,
    go_on,
    wake_main_thread,
)

# Seconds between two looks for signals where no thread tells the main thread of them.
_PERIOD: Final = 1.0


class StoppedAtStart(KeyboardInterrupt):
    """A stop was requested before there was anything to drain.

    Code of the project that is being imported lets it pass, as any KeyboardInterrupt.

    Attributes:
        reason: The reason that was given.
    """

    def __init__(self, reason: str) -> None:
        """Name the reason."""
        super().__init__(reason)
        self.reason = reason


class ShutdownRequest:
    """A place to wait until SIGTERM or SIGINT comes, or something else asks to stop.

    Entered on the main thread it handles both signals until it is left; on another thread, where
    Python can't handle signals, only `request` ends the wait. A second signal, `TOGETHER` seconds
    after the first or later, ends the process at once, with the status that a shell gives a process
    which the signal killed.

    Of a start, a request ends what happens: see `begin_serving`.
    """

    def __init__(self, *, is_starting: bool = False, is_last: bool = False) -> None:
        """Prepare to be entered.

        Args:
            is_starting: Whether nothing is served yet: until `begin_serving`, a signal raises
                StoppedAtStart wherever the main thread is.
            is_last: Whether the process ends when it is left. Then signals that come after the one
                that has been waited for stay handled: there is no moment in which one of them
                would change the exit status before `end_in_peace` is called.
        """
        self._is_starting = is_starting
        self._is_last = is_last
        self._process = os.getpid()
        # A signal handler runs on the main thread between any two steps of what that does, so what
        # it calls must be reentrant. SimpleQueue.put is, Event.set is not.
        self._reasons: SimpleQueue[str] = SimpleQueue()
        self._requested_at: float | None = None
        # When a stop was requested that a signal to stop may belong to.
        self._told_at: float | None = None
        self._has_left = False
        self._previous: dict[signal.Signals, Any] = {}
        self._waker: Waker | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
            if not self._is_starting:
                self.wake_for_signals()
        return self

    def wake_for_signals(self) -> None:
        """Prepare the main thread, if that has entered it, for `wait`.

        Called once, at the latest before something else asks Python for its signals, as event loops
        do. It is done upon entry if nothing starts. On another thread it does nothing.
        """
        if self._previous:
            self._waker = Waker()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_clean = exception is None or isinstance(exception, StoppedAtStart)
        if self._is_last and is_clean and self._requested_at is not None:
            self._has_left = True
            self._told_at = self._told_at or self._requested_at
        else:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous.clear()
        if self._waker is not None:
            self._waker.stop()
            self._waker = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A process that the project has forked: nobody waits for a request there.
            signal.signal(number, self._previous[signal.Signals(number)])
            signal.raise_signal(number)
        elif self._requested_at is None:
            self._told_at = time.monotonic()
            name = signal.Signals(number).name
            self.request(name)
            self.interrupt(name)
        elif self._told_at is None:  # something else has asked to stop
            self._told_at = time.monotonic()
        elif time.monotonic() - self._told_at < TOGETHER:
            pass
        elif self._has_left:
            go_on(self._previous[signal.Signals(number)], number, frame)
        else:
            end_at_once(number)

    def interrupt(self, name: str) -> None:
        """Interrupt the main thread, on which a first signal is handled, if that has to be."""
        if self._is_starting:
            raise StoppedAtStart(name)

    def request(self, reason: str) -> None:
        """End the wait. Callable from any thread, and more than once."""
        if self._requested_at is None:
            self._requested_at = time.monotonic()
        self._reasons.put(reason)

    def begin_serving(self) -> None:
        """Have requests wait for `wait` from now on; called by the thread that serves.

        Raises:
            StoppedAtStart: There has been one.
        """
        # `end_start` writes and reads in the other order: of two threads at the same time at least
        # one sees what the other does. The one that gets the reason ends the start; should it be
        # the other, this one waits here for the end of the process.
        if self._is_starting:
            self._is_starting = False
            if self._requested_at is not None:
                raise StoppedAtStart(self._reasons.get())

    def end_start(self, reason: str) -> bool:
        """Request a stop if nobody has, from another thread than that which serves.

        Returns:
            Whether that does not serve yet, and never will: nobody else hears of the request.
        """
        if self._requested_at is None:
            self.request(reason)
        if not self._is_starting:
            return False
        try:
            self._reasons.get_nowait()
        except Empty:  # it has just come to it, and sees the request
            return False
        return True

    def wait(self) -> str:
        """Block until a stop is requested.

        Returns:
            The reason that was given: the name of the signal, if it was one.
        """
        seconds = None if self._waker is None or self._waker.is_running else _PERIOD
        while True:
            try:
                return self._reasons.get(timeout=seconds)
            except Empty:
                wake_main_thread()

    def wait_again(self, seconds: float) -> str | None:
        """Block until a stop is requested once more, for so many seconds at most.

        Returns:
            The reason that was given then; None: there was none.
        """
        try:
            return self._reasons.get(timeout=seconds)
        except Empty:
            return None
