"""A terminal that shows one page of text after the other."""

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_END_OF_LINE = "\x1b[K"
_END_OF_SCREEN = "\x1b[J"
# What ends a process that does not handle it.
_DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_REVERSED, _PLAIN = "\x1b[7m", "\x1b[m"


class Screen:
    """The terminal of standard input and output, within a ``with``; it is left as it was.

    Also where the process is stopped by Ctrl-Z, or ended by SIGTERM. For the main thread, whose
    signals tell of the terminal's new size.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._output = sys.stdout.fileno()
        self._keys = -1
        self._attributes: list[Any] = []
        self._resized: tuple[int, int] = (-1, -1)
        self._old_wakeup = -1
        self._old_handlers: dict[int, Any] = {}
        self._is_interrupted = False
        self._is_taken = False

    def __enter__(self) -> Self:
        # A read that waits misses an interrupt that comes just before it: what select has seen may
        # have been its character, which is gone by then. The descriptor is our own, as whether it
        # waits is a matter of all who share one: the shell's would not wait either. By its name
        # another user's terminal may not be opened.
        try:
            self._keys = os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:  # it is not the one that controls the process
            self._keys = os.dup(self._input)
        self._attributes = termios.tcgetattr(self._input)
        self._resized = os.pipe()
        for end in self._resized:
            os.set_blocking(end, False)
        self._old_wakeup = signal.set_wakeup_fd(self._resized[1], warn_on_full_buffer=False)
        self._handle(signal.SIGWINCH, lambda *_: None)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handle(signal.SIGINT, self._interrupt)
        handlers = {signal.SIGTSTP: self._stop, **dict.fromkeys(_DEADLY, self._end)}
        for number, handler in handlers.items():
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handle(number, handler)
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, old in self._old_handlers.items():
            signal.signal(number, old)
        self._give_back()
        signal.set_wakeup_fd(self._old_wakeup)
        for end in (*self._resized, self._keys):
            os.close(end)

    def _take(self) -> None:
        tty.setcbreak(self._input)
        self._write(_ENTER)
        self._is_taken = True

    def _give_back(self) -> None:
        self._is_taken = False
        self._write(_LEAVE)
        termios.tcsetattr(self._input, termios.TCSADRAIN, self._attributes)

    def show(self, write: Callable[[int, int], list[str]], title: str) -> None:
        """Show a page.

        Args:
            write: Given the columns and lines that there are, writes it.
            title: The last line.
        """
        size = shutil.get_terminal_size()
        lines = write(size.columns, size.lines - 1)[: size.lines - 1]
        lines += [""] * (size.lines - 1 - len(lines))
        body = "".join(f"{line[: size.columns]}{_END_OF_LINE}\n" for line in lines)
        bar = f"{_REVERSED}{title[: size.columns - 1]}{_PLAIN}{_END_OF_LINE}{_END_OF_SCREEN}"
        self._write(f"{_HOME}{body}{bar}")

    def wait(self, until: float, on_resize: Callable[[], None]) -> str | None:
        """Wait for a key.

        Args:
            until: The monotonic clock's time at which to return None.
            on_resize: Called whenever the terminal has another size.

        Raises:
            KeyboardInterrupt: Also when one came before, and whoever ran then has swallowed it.
        """
        while (left := until - time.monotonic()) > 0:
            if self._is_interrupted:
                raise KeyboardInterrupt
            ready, _, _ = select.select([self._keys, self._resized[0]], [], [], left)
            if self._resized[0] in ready:
                os.read(self._resized[0], 512)
                on_resize()
            if self._keys in ready:
                try:
                    key = os.read(self._keys, 1)
                except BlockingIOError:
                    continue
                # Nothing is the end of the input, a terminal that has gone: there is nothing to go
                # on for.
                return key.decode(errors="replace") if key else "q"
        return None

    def _handle(self, number: int, handler: Callable[[int, Any], None]) -> None:
        self._old_handlers[number] = signal.signal(number, handler)

    def _interrupt(self, number: int, frame: Any) -> None:
        # A file's finalizer, for one, drops whatever is raised in it.
        self._is_interrupted = True
        raise KeyboardInterrupt

    def _stop(self, number: int, frame: Any) -> None:
        """Stop as nobody had handled the signal; return when the process goes on."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._stop)
        self._take()
        os.write(self._resized[1], b"\0")  # the page is to be shown anew

    def _end(self, number: int, frame: Any) -> None:
        with contextlib.suppress(OSError, termios.error):  # it has gone
            # In the background it is another's, who would be stopped for touching it.
            if self._is_taken and os.tcgetpgrp(self._input) == os.getpgrp():
                self._give_back()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _write(self, text: str) -> None:
        # Not by `sys.stdout`: a handler may come in the middle of a write.
        data = text.encode(sys.stdout.encoding, errors="replace")
        while data:
            data = data[os.write(self._output, data) :]
