"""Signals to stop, and how the main thread hears of them."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Final, NoReturn

from django_grpc import greenlets
from django_grpc.lifecycle.output import write_last_words

#: What asks a process to stop.
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

#: Signals to stop within so many seconds are one: ``timeout``, a wrapper and a terminal signal the
#: process and its group, and it gets what was meant once twice.
TOGETHER: Final = 0.5

#: Wakes the main thread, and does nothing else: it is ignored where nobody handles it.
WAKE_UP: Final = signal.SIGURG

# How often the main thread is woken, and the seconds between. Once is not enough: a wake-up that
# comes in the instant before it goes to sleep is lost.
_WAKE_UPS: Final = 5
_PAUSE: Final = 0.02


class Waker:
    """Has the main thread run the handlers of signals, whichever thread the system gave them to.

    A signal is meant for the main thread if that may have it. But a thread that starts another one
    or changes its mask looks for signals too, and may be faster. Python's own handler then only
    notes the signal, for the main thread to see when it wakes up: never, if it sleeps until it is
    told to stop. Python can be asked to write the numbers of signals into a pipe, too, whichever
    thread has them, and a thread that reads them here wakes the main thread.
    """

    def __init__(self) -> None:
        """Start the thread, on the main thread; without one where the system refuses it."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # as set_wakeup_fd wants it
        self._previous = signal.signal(WAKE_UP, lambda number, frame: None)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._run, name="grpcserver-signals", daemon=True)
        #: Whether it does.
        self.is_running = True
        try:
            thread.start()
        except RuntimeError:
            # Whoever waits looks for signals then. Where threads are short, those that the server
            # can't do without say so.
            self.is_running = False

    def stop(self) -> None:
        """Give back what was taken."""
        signal.set_wakeup_fd(self._previous_writer)
        signal.signal(WAKE_UP, self._previous)
        os.close(self._writer)
        if not self.is_running:
            os.close(self._reader)

    def _run(self) -> None:
        while number := os.read(self._reader, 1):
            if number[0] in SIGNALS:
                for _ in range(_WAKE_UPS):
                    wake_main_thread()
                    greenlets.sleep(_PAUSE)
        os.close(self._reader)


def wake_main_thread() -> None:
    """Have the main thread run the handlers of what has come; while there is a Waker."""
    if (main := threading.main_thread().ident) is not None:
        signal.pthread_kill(main, WAKE_UP)


def go_on(previous: Any, number: int, frame: FrameType | None) -> None:
    """Do what a program that goes on has for a signal; without something of its own, end it."""
    if callable(previous) and previous is not signal.default_int_handler:
        previous(number, frame)
    elif previous is not signal.SIG_IGN:
        end_at_once(number)


def end_at_once(number: int) -> NoReturn:
    """End the process with the status that a shell gives one which the signal has killed."""
    # SIG_DFL would do nothing in a container, whose first process the kernel spares.
    write_last_words(b"Ended at once.\n")
    os._exit(128 + number)
