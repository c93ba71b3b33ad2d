"""Printing that stops nothing: whoever read it may have gone, or its disk may be full.

A server outlives the terminal, the pipe or the log that it was started with. What it can't say is
lost, and it goes on.
"""

import contextlib
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO, cast

from django.core.management.base import BaseCommand, OutputWrapper

_STANDARD = (0, 1, 2)
#: Seconds that a write waits for somebody to read what fills a pipe; then it is lost.
_PATIENCE = 1.0
#: The pipes that nobody has read for so long, as device and inode; for them nothing waits again.
_stuck: set[tuple[int, int]] = set()
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL

# What a write to a stream raises: the system's error, or Python's own of one that is closed; one of
# the project's own making, which copies what is printed, may lack all but `write`.
_ERRORS = (OSError, ValueError, AttributeError)


class TolerantOutput(OutputWrapper):
    """A command's `stdout` or `stderr` whose writes never raise, nor wait for a reader for long."""

    def __init__(self, output: OutputWrapper) -> None:
        """Write to what the command had."""
        super().__init__(cast(TextIO, output))

    def write(  # type: ignore[override]
        self,
        msg: str = "",
        style_func: Callable[[str], str] | None = None,
        ending: str | None = None,
    ) -> None:
        """Write, or lose it."""
        try:
            if self._has_room():
                super().write(msg, style_func, ending)
        except _ERRORS:
            replace_lost_descriptors()

    def flush(self) -> None:
        """Flush, or lose it."""
        try:
            if self._has_room():
                super().flush()
        except _ERRORS:
            replace_lost_descriptors()

    def _has_room(self) -> bool:
        """Whether a write of some lines will not block: a pipe that nobody reads may be full."""
        try:
            descriptor = self.fileno()
        except _ERRORS:  # no file
            return True
        return _has_room(descriptor)


def _has_room(descriptor: int) -> bool:
    """Whether a descriptor takes something at once, or soon."""
    status = os.fstat(descriptor)
    identity = (status.st_dev, status.st_ino)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if poll.poll(0 if identity in _stuck else _PATIENCE * 1000):
        _stuck.discard(identity)
        return True
    _stuck.add(identity)
    return False


def make_output_tolerant(command: BaseCommand) -> None:
    """Have what a command, and the project, prints stop nothing.

    Args:
        command: Its `stdout` and `stderr` are replaced.
    """
    replace_lost_descriptors()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        output = getattr(command, name)
        if getattr(sys, name) is None:  # Python found its descriptor closed
            stream = open(descriptor, "w", errors="backslashreplace", closefd=False)
            setattr(sys, name, stream)
            output = OutputWrapper(stream)
        setattr(command, name, TolerantOutput(output))


def replace_lost_descriptors() -> None:
    """Have ``/dev/null`` in place of a standard descriptor that is closed or has no other end.

    So what the project prints doesn't raise either, here and in processes that inherit it, and the
    number of a closed one isn't given to a socket.
    """
    for descriptor in _STANDARD:
        poll = select.poll()
        poll.register(descriptor, 0)
        with contextlib.suppress(OSError):
            found = dict(poll.poll(0)).get(descriptor, 0)
            # A pipe to read from whose writers have gone is an end of file, and no fault.
            if found & (select.POLLNVAL if descriptor == 0 else _GONE):
                null = os.open(os.devnull, os.O_RDWR)
                if null != descriptor:
                    os.dup2(null, descriptor)
                    os.close(null)
                else:
                    os.set_inheritable(null, True)


def flush_or_lose() -> None:
    """Flush the standard streams; what can't be written then does not fail Python's own end."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is None:
            continue
        try:
            if not _has_room(descriptor):
                raise BlockingIOError
            stream.flush()
        except _ERRORS:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, descriptor)
                os.close(null)


def write_last_words(text: bytes) -> None:
    """Write to standard error right before the process is ended, unless that would block."""
    with contextlib.suppress(*_ERRORS):
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ else 2
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, text)
