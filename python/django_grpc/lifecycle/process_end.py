"""How a process that has served comes to its end, whatever is left of it."""

import atexit
import contextlib
import ctypes
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from django_grpc import greenlets
from django_grpc.lifecycle.output import flush_or_lose
from django_grpc.lifecycle.stop_signals import SIGNALS, TOGETHER, WAKE_UP, go_on

# Seconds between two looks whether the main thread's program has ended.
_PROBE_PAUSE: Final = 0.05

# How often the wait for threads is asked to end.
_PROBES: Final = 20


def end_in_peace() -> None:
    """Have signals to stop disturb the end of a process that has been told to stop no more.

    One that belongs together with the one that has stopped it would change its exit status. A later
    one still ends it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()
    ended_at = time.monotonic()

    def is_together() -> bool:
        return time.monotonic() - ended_at < TOGETHER

    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        previous = before[signal.Signals(number)]
        if os.getpid() != process:  # one that has been forked, for which nothing has come before
            signal.signal(number, previous)
            signal.raise_signal(number)
        elif not is_together():
            go_on(previous, number, frame)

    def handle_signals(*_: object) -> None:
        for number in SIGNALS:
            signal.signal(number, handle)

    def ignore() -> None:
        # Python gives handlers up when all that is registered with `atexit` has run. That may take
        # as long as it wants, so it is for what belongs together only.
        if is_together():
            for number in SIGNALS:
                _ignore(number)
            os.register_at_fork(after_in_child=handle_signals)
            signal.signal(WAKE_UP, handle_signals)
            if not is_together():  # the wake-up may have been before
                handle_signals()

    def wake_up() -> None:
        greenlets.sleep(TOGETHER)
        if (main := threading.main_thread().ident) is not None:
            signal.pthread_kill(main, WAKE_UP)

    handle_signals()
    atexit.register(ignore)
    # Where there is no other thread, what comes later is ignored too.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=wake_up, name="grpcserver-late-signals", daemon=True).start()


def _ignore(number: int) -> None:
    """Ignore a signal here, and not in the programs that this process starts."""
    signal.signal(number, signal.SIG_IGN)
    # They inherit that, but no handler: this is one of the system's that does nothing, and of which
    # Python, which would give it up, knows nothing.
    system = ctypes.CDLL(None)
    system.signal(number, ctypes.cast(system.abs, ctypes.c_void_p))


def end_threads_soon(status: int, *, limits_atexit: bool, seconds: float = 1.0) -> None:
    """End the process even if threads that there are now don't end, that of pools and no daemons.

    Called on the main thread, which has all the time it wants for the rest of its program, and what
    that starts has too; unless the system refuses another thread, and calls were cut.

    Args:
        status: The process's, where what is registered with `atexit` has not ended in time.
        limits_atexit: Whether that, which comes after such threads, has to end in that time too,
            and whatever else holds up the interpreter's end.
        seconds: What they have, once the main thread's program has ended.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        return

    def threads() -> list[threading.Thread]:
        return [it for it in threading.enumerate() if not it.daemon and it is not main]

    left = threads()
    if not left and not limits_atexit:
        return
    program = _outermost(greenlets.main_frame() or inspect.currentframe())

    def has_ended() -> bool:
        # With the error that has ended it told, too: a hook for that may take its time.
        return wait.is_under_way() or (limits_atexit and not _is_executing(program))

    def end() -> None:
        while not has_ended():
            if not limits_atexit and not any(map(_is_alive, left)):
                return
            greenlets.sleep(_PROBE_PAUSE)
        give_up_at = time.monotonic() + seconds
        for thread in left:
            _join(thread, max(0.0, give_up_at - time.monotonic()))
        if limits_atexit:
            greenlets.sleep(max(0.0, give_up_at - time.monotonic()))
            end_process(status, 0)
        while started := [it for it in threads() if it not in left]:
            for thread in started:
                _join(thread)
        if any(map(_is_alive, left)) and not wait.end():
            end_process(status, 0)

    wait = _WaitForThreads()
    try:
        threading.Thread(target=end, name="grpcserver-end", daemon=True).start()
    except RuntimeError:  # the system refuses another thread
        if limits_atexit:
            end_process(status, seconds)


# Those of a subclass may take other arguments, and mean something else.
_is_alive = threading.Thread.is_alive
_join = threading.Thread.join


class _WaitForThreads:
    """The interpreter's, on the main thread, whose program has ended."""

    class _End(BaseException):
        pass

    def __init__(self) -> None:
        """Prepare `end`. Called on the main thread."""
        self._main = threading.main_thread().ident or 0
        self._has_to_end = False
        self._previous = signal.signal(WAKE_UP, self._handle)

    def is_under_way(self) -> bool:
        return self._is_in(sys._current_frames().get(self._main))

    def _is_in(self, frame: FrameType | None) -> bool:
        outermost = _outermost(frame)
        if outermost is None:
            return False
        code = outermost.f_code
        return (code.co_filename, code.co_name) == (threading.__file__, "_shutdown")

    def end(self) -> bool:
        """End it as Ctrl-C does, so that the process has its program's status.

        Called on another thread. Those that it would have waited for are daemons from now on.

        Returns:
            Whether it has ended: the project may have taken the signal away that it needs.
        """
        tell = sys.unraisablehook

        def tell_others(error: "sys.UnraisableHookArgs") -> None:
            if error.exc_type is not self._End:
                tell(error)

        sys.unraisablehook = tell_others
        self._has_to_end = True
        for _ in range(_PROBES):
            if not self.is_under_way():
                return True
            signal.pthread_kill(self._main, WAKE_UP)
            greenlets.sleep(_PROBE_PAUSE)
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._has_to_end and self._is_in(frame):
            raise self._End
        if callable(self._previous):
            self._previous(number, frame)


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
