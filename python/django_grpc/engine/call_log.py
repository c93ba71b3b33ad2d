"""Calls that have ended, given in batches to whoever writes them down."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from django_grpc.engine.observers import Observer
from django_grpc.engine.surroundings import inside, log_exception

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_grpc import _engine


class CallRecord(NamedTuple):
    """A call that has ended, refused ones among them.

    Attributes:
        method: The path that was asked for, ``/package.Service/Method``, whether there is such a
            method or not.
        peer: Who called, as `ServicerContext.peer()` has it.
        code: The number of the status.
        started: When its headers came, in seconds since 1970.
        duration: Seconds from there to the end of the answer.
        queue_wait: Seconds that it waited for a thread or a loop; None when none ever ran it.
        messages_in: Messages that came.
        bytes_in: Their bytes, compressed where they were.
        messages_out: Messages that were sent.
        bytes_out: Their bytes, likewise.
        queries: Queries to databases, where they are counted.
        query_time: The seconds that they took.
    """

    method: str
    peer: str
    code: int
    started: float
    duration: float
    queue_wait: float | None
    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int
    queries: int
    query_time: float


class CallLogThread(Observer):
    """The thread that takes calls from the engine. It sleeps there, without the GIL."""

    def __init__(
        self, native: _engine.Server, write: Callable[[list[CallRecord], int], None]
    ) -> None:
        """Prepare it; `start` starts it."""
        super().__init__("grpc-call-log")
        self._native = native
        self._write = write

    def close(self) -> None:
        """Take no more calls, and end when those that there are have been written."""
        self._native.close_call_log()

    def _run(self) -> None:
        while (batch := self._native.next_calls()) is not None:
            calls, dropped = batch
            with inside(self.surroundings):
                try:
                    self._write([CallRecord._make(it) for it in calls], dropped)
                except BaseException:  # sys.exit() must not end the log
                    log_exception("Calls could not be logged")
