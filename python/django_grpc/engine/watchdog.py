"""Calls whose servicers run for long, logged with their Python stacks."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import traceback
import types
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from django_grpc import _engine
from django_grpc.engine.endings import Ending
from django_grpc.engine.observers import Observer
from django_grpc.engine.surroundings import inside, log_exception
from django_grpc.logs import GuardedLogger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = GuardedLogger("django_grpc.watchdog")

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}

#: What is the engine's of a stack, and no news to anybody.
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_THREADING = threading.__file__

#: Seconds: how often it looks, at least and at most.
_SHORTEST, _LONGEST = 0.05, 1.0


class OverdueCall(NamedTuple):
    """A call whose servicer runs for long.

    Attributes:
        method: Its path.
        peer: Who called.
        running_time: Seconds since a thread or the loop took it.
        time_remaining: Seconds until its deadline, negative after that; None without one.
        code: The number of the status that it has ended with, though its servicer goes on; None
            while it has not.
        thread: What the system calls the thread that runs it.
        task: What runs it on the loop. With neither its servicer has returned.
    """

    method: str
    peer: str
    running_time: float
    time_remaining: float | None
    code: int | None
    thread: int | None
    task: asyncio.Task[Any] | None


class Watchdog(Observer):
    """A thread that looks for calls that run for longer than a limit, and logs each once.

    A servicer that keeps the GIL (in C code) keeps this thread from looking; what became overdue
    meanwhile is logged afterwards, whether it has ended or not.
    """

    def __init__(self, native: _engine.Server, limit: float) -> None:
        """Prepare it; `start` starts it.

        Args:
            native: The server whose calls they are.
            limit: Seconds that a servicer may run.
        """
        super().__init__("grpc-watchdog")
        self._native = native
        self._limit = limit
        self._interval = min(max(limit / 4, _SHORTEST), _LONGEST)
        self._closing = Ending()

    def close(self) -> None:
        """End soon."""
        self._closing.set()

    def _run(self) -> None:
        self._look()  # so that the engine knows the limit
        while not self._closing.wait(self._interval):
            self._look()
        self._look()  # for what has ended since

    def _look(self) -> None:
        try:
            self._log_overdue()
        except BaseException:  # sys.exit() must not end the watchdog
            log_exception("The watchdog failed")

    def _log_overdue(self) -> None:
        # The frames first: a call that is overdue afterwards was running then, so that a thread's
        # frame is of its call and not of the next one.
        frames = current_frames()
        # Ours would hold the dictionary that holds it, and with that every frame of the process.
        del frames[threading.get_ident()]
        overdue = self._native.overdue_calls(self._limit)
        if not overdue:
            return
        with inside(self.surroundings):
            for it in overdue:
                _log(OverdueCall._make(it), frames)


def current_frames() -> dict[int, types.FrameType]:
    """Return the frame of each thread, by its identifier.

    CPython before 3.11.9 and 3.12.3 locks its list of threads for that, and may collect garbage
    then (gh-106883): a finalizer that gives up the GIL, and another thread that begins or ends,
    and the process stands still for good.
    """
    return _engine.without_collection(sys._current_frames)


def _log(call: OverdueCall, frames: Mapping[int, types.FrameType]) -> None:
    try:
        logger.warning(
            "%s",
            describe(call, frames),
            extra={"method": call.method, "peer": call.peer, "running_time": call.running_time},
        )
    except BaseException:  # a project's importer may fail to give the source of a frame
        log_exception("The watchdog failed")


def describe(call: OverdueCall, frames: Mapping[int, types.FrameType]) -> str:
    """Say what there is to say of a call, its stack last."""
    facts = f"peer {call.peer}, {_deadline(call.time_remaining)}"
    if call.thread is None and call.task is None:
        ended = "" if call.code is None else f" with {_CODES.get(call.code, call.code)}"
        return (
            f"{call.method} ran for {call.running_time:.1f} s and has ended{ended} ({facts}). "
            "The interpreter was held meanwhile, so there is no stack of it."
        )
    if call.code is not None:
        facts += f", already answered {_CODES.get(call.code, call.code)}"
    if call.task is not None:
        place, stack = "on the asyncio loop", task_stack(call.task, frames)
    else:
        thread = next((it for it in threading.enumerate() if it.native_id == call.thread), None)
        place = f"on thread {call.thread if thread is None else thread.name}"
        frame = None if thread is None or thread.ident is None else frames.get(thread.ident)
        stack = [] if frame is None else traceback.extract_stack(frame)
    text = "".join(traceback.format_list(_servicers_part(stack)))
    where = text.rstrip("\n") or "  (no Python frame)"
    return f"{call.method} runs for {call.running_time:.1f} s {place} ({facts}):\n{where}"


def _deadline(remaining: float | None) -> str:
    if remaining is None:
        return "no deadline"
    if remaining < 0:
        return f"deadline {-remaining:.1f} s ago"
    return f"deadline in {remaining:.1f} s"


def _servicers_part(stack: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Leave out what brought the call to its servicer."""
    for index, frame in enumerate(stack):
        if frame.filename != _THREADING and not frame.filename.startswith(_PACKAGE + os.sep):
            return stack[index:]
    return stack


def task_stack(
    task: asyncio.Task[Any], frames: Mapping[int, types.FrameType]
) -> list[traceback.FrameSummary]:
    """Return a task's stack, the innermost frame last, as for threads.

    `Task.get_stack` ends at the first coroutine that waits; what it waits for is what matters.

    Args:
        task: The task.
        frames: What `current_frames` gave, for a task that blocks its loop.
    """
    chain = list(_awaited(task.get_coro()))
    if chain and (running := _running_frame(chain, frames)) is not None:
        return traceback.extract_stack(running)
    return list(traceback.StackSummary.extract((it, it.f_lineno) for it in chain))


def _awaited(awaitable: Any) -> Iterator[types.FrameType]:
    """Iterate over the frames of what awaits what."""
    while awaitable is not None:
        for prefix in ("cr", "ag", "gi"):
            frame = getattr(awaitable, f"{prefix}_frame", None)
            if frame is not None:
                yield frame
                waits = "yieldfrom" if prefix == "gi" else "await"
                awaitable = getattr(awaitable, f"{prefix}_{waits}", None)
                break
        else:
            # What `async for` awaits knows its generator, and tells the garbage collector only.
            awaitable = next(
                (
                    it
                    for it in gc.get_referents(awaitable)
                    if isinstance(it, types.AsyncGeneratorType)
                ),
                None,
            )


def _running_frame(
    chain: list[types.FrameType], frames: Mapping[int, types.FrameType]
) -> types.FrameType | None:
    """Find the thread that runs one of the frames now."""
    for innermost in frames.values():
        frame: types.FrameType | None = innermost
        while frame is not None:
            if frame is chain[0]:
                return innermost
            frame = frame.f_back
    return None
