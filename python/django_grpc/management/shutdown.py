"""How the process that serves is told to stop."""

import atexit
import contextlib
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

from django_grpc import greenlets
from django_grpc.management.output import flush_or_lose, write_last_words

#: Signals to stop within so many seconds are one: ``timeout``, a wrapper and a terminal signal the
#: process and its group, and it gets what was meant once twice.
TOGETHER: Final = 0.5

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Wakes the main thread, and does nothing else: it is ignored where nobody handles it.
_WAKE_UP = signal.SIGURG

# How often the main thread is woken, and the seconds between. Once is not enough: a wake-up that
# comes in the instant before it goes to sleep is lost.
_WAKE_UPS = 5
_PAUSE = 0.02

# Seconds between two looks whether the main thread's program has ended.
_PROBE_PAUSE = 0.05


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
    Python can't handle signals, only `request` ends the wait. A signal that comes `TOGETHER`
    seconds after a stop has been requested, or later, ends the process at once, with the status
    that a shell gives a process which the signal killed.

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
        self._has_left = False
        self._previous: dict[signal.Signals, Any] = {}
        self._waker: _Waker | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
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
            self._waker = _Waker()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_clean = exception is None or isinstance(exception, StoppedAtStart)
        if self._is_last and is_clean and self._requested_at is not None:
            self._has_left = True
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
            name = signal.Signals(number).name
            self.request(name)
            if self._is_starting:
                raise StoppedAtStart(name)
        elif time.monotonic() - self._requested_at < TOGETHER:
            pass
        elif self._has_left:
            _go_on(self._previous[signal.Signals(number)], number, frame)
        else:
            _end_at_once(number)

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
        """Request a stop, from another thread than that which serves.

        Returns:
            Whether that does not serve yet, and never will: nobody else hears of the request.
        """
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
        return self._reasons.get()

    def wait_again(self, seconds: float) -> str | None:
        """Block until a stop is requested once more, for so many seconds at most.

        Returns:
            The reason that was given then; None: there was none.
        """
        try:
            return self._reasons.get(timeout=seconds)
        except Empty:
            return None


class _Waker:
    """Has the main thread run the handlers of signals, whichever thread the system gave them to.

    A signal is meant for the main thread if that may have it. But a thread that starts another one
    or changes its mask looks for signals too, and may be faster. Python's own handler then only
    notes the signal, for the main thread to see when it wakes up: never, if it sleeps until it is
    told to stop. Python can be asked to write the numbers of signals into a pipe, too, whichever
    thread has them, and a thread that reads them here wakes the main thread.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # as set_wakeup_fd wants it
        self._previous = signal.signal(_WAKE_UP, lambda number, frame: None)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._run, name="grpcserver-signals", daemon=True)
        self._is_running = True
        try:
            thread.start()
        except RuntimeError:
            # Most signals come through without it. Where threads are short, those that the server
            # can't do without say so.
            self._is_running = False

    def stop(self) -> None:
        signal.set_wakeup_fd(self._previous_writer)
        signal.signal(_WAKE_UP, self._previous)
        os.close(self._writer)
        if not self._is_running:
            os.close(self._reader)

    def _run(self) -> None:
        main = threading.main_thread().ident
        while number := os.read(self._reader, 1):
            if number[0] in _SIGNALS and main is not None:
                for _ in range(_WAKE_UPS):
                    signal.pthread_kill(main, _WAKE_UP)
                    greenlets.sleep(_PAUSE)
        os.close(self._reader)


def _go_on(previous: Any, number: int, frame: FrameType | None) -> None:
    """Do what a program that goes on has for a signal; without something of its own, end it."""
    if callable(previous) and previous is not signal.default_int_handler:
        previous(number, frame)
    elif previous is not signal.SIG_IGN:
        _end_at_once(number)


def _end_at_once(number: int) -> NoReturn:
    # SIG_DFL would do nothing in a container, whose first process the kernel spares.
    write_last_words(b"Ended at once.\n")
    os._exit(128 + number)


def end_in_peace() -> None:
    """Have signals to stop disturb the end of a process that has been told to stop no more.

    One that belongs together with the one that has stopped it would change its exit status. A later
    one still ends it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    ended_at = time.monotonic()

    def is_together() -> bool:
        return time.monotonic() - ended_at < TOGETHER

    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        if is_together():
            return
        _go_on(before[signal.Signals(number)], number, frame)

    def handle_signals(*_: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, handle)

    def ignore() -> None:
        # Python gives handlers up when all that is registered with `atexit` has run. That may take
        # as long as it wants, so it is for what belongs together only.
        if is_together():
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(_WAKE_UP, handle_signals)
            if not is_together():  # the wake-up may have been before
                handle_signals()

    def wake_up() -> None:
        greenlets.sleep(TOGETHER)
        if (main := threading.main_thread().ident) is not None:
            signal.pthread_kill(main, _WAKE_UP)

    handle_signals()
    atexit.register(ignore)
    # Where there is no other thread, what comes later is ignored too.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=wake_up, name="grpcserver-late-signals", daemon=True).start()


def end_threads_soon(status: int, *, limits_atexit: bool, seconds: float = 1.0) -> None:
    """End the process even if threads that there are now don't end, that of pools and no daemons.

    Called on the main thread, which has all the time it wants for the rest of its program, and what
    that starts has too; unless the system refuses another thread, and calls were cut.

    Args:
        status: The process's, where it is ended so.
        limits_atexit: Whether what is registered with `atexit`, which comes after such threads, has
            to end in that time too, and whatever else holds up the interpreter's end.
        seconds: What they have, once the main thread's program has ended.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        return
    left = [it for it in threading.enumerate() if not it.daemon and it is not main]
    if not left and not limits_atexit:
        return
    program = _outermost(inspect.currentframe())

    def has_ended() -> bool:
        # With the error that has ended it told, too: a hook for that may take its time.
        return _waits_for_threads(main) or (limits_atexit and not _is_executing(program))

    def end() -> None:
        while not has_ended():
            if not limits_atexit and not any(thread.is_alive() for thread in left):
                return
            greenlets.sleep(_PROBE_PAUSE)
        give_up_at = time.monotonic() + seconds
        for thread in left:  # not by a method of a subclass, which may take no timeout
            threading.Thread.join(thread, max(0.0, give_up_at - time.monotonic()))
        if limits_atexit:
            greenlets.sleep(max(0.0, give_up_at - time.monotonic()))
        elif not any(thread.is_alive() for thread in left):
            return
        end_process(status, 0)

    try:
        threading.Thread(target=end, name="grpcserver-end", daemon=True).start()
    except RuntimeError:  # the system refuses another thread
        if limits_atexit:
            end_process(status, seconds)


def _waits_for_threads(main: threading.Thread) -> bool:
    """Whether the interpreter, whose program has ended, waits for the threads that are left."""
    frame = _outermost(sys._current_frames().get(main.ident or 0))
    return frame is not None and frame.f_code.co_filename == threading.__file__


def _outermost(frame: FrameType | None) -> FrameType | None:
    """Return the frame that a thread has begun with, given its innermost one."""
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_executing(frame: FrameType | None) -> bool:
    try:
        if frame is not None:
            frame.clear()  # which is refused as long as it is
    except RuntimeError:
        return True
    return False


def end_process(status: int, seconds: float) -> NoReturn:
    """End the process in so many seconds, whatever its threads do."""
    greenlets.sleep(seconds)
    flush_or_lose()
    os._exit(status)


def run_for(work: Callable[[], object], seconds: float) -> None:
    """Do something on a thread of its own, and wait for its end no longer than that.

    Where the system refuses a thread it is done here, as long as it takes.
    """
    thread = threading.Thread(target=work, name="grpcserver-last", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
    else:
        thread.join(seconds)
