"""Where a server's async methods run: a loop of the server's own, or one that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import threading
import time
from typing import TYPE_CHECKING

from django_grpc.engine.options import UVLOOP
from django_grpc.logs import GuardedLogger, exc_info_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django_grpc import _engine
    from django_grpc.engine.options import ChannelArgument

logger = GuardedLogger("django_grpc")

#: How long a server that stops waits for servicers that were cancelled, at the least, in seconds.
CANCELLATION_TIMEOUT = 2.0

# The seconds after which it is asked again how long they have.
_LOOK_AGAIN = 0.2


def loop_factory(
    options: Iterable[ChannelArgument] | None,
) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop that a server's options ask for; `None` is asyncio's own.

    Raises:
        ValueError: They ask for uvloop, which is not installed, or by a value that can't be.
    """
    values = [value for name, value in options or () if name == UVLOOP]
    for value in values:
        if not isinstance(value, int) or value not in (0, 1):
            raise ValueError(f"The server option {UVLOOP!r} must be 0 or 1, not {value!r}.")
    if not any(values):
        return None
    try:
        uvloop = importlib.import_module("uvloop")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The server option {UVLOOP!r} needs the package uvloop: install it, or leave the "
            "option out."
        ) from error
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def abandon(loop: asyncio.AbstractEventLoop) -> None:
    """Have a loop that a forked process has inherited never be closed there, not even at its end.

    What it waits with is the parent's as well, and what is taken off there would be taken off the
    parent's loop.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop))


def attach(native: _engine.Server, loop: asyncio.AbstractEventLoop) -> int:
    """Have a loop run a server's async calls. Called on the loop.

    Returns:
        The descriptor that the loop watches, for `detach` and `lose`.

    Raises:
        OSError: There is no descriptor left.
        RuntimeError: The server has a loop, or has stopped.
    """
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    if not native.attach_loop(loop.create_task, descriptor):
        raise RuntimeError("The server wants no loop: it has one, or has stopped.")
    loop.add_reader(descriptor, native.run_events)
    return descriptor


async def detach(
    native: _engine.Server,
    loop: asyncio.AbstractEventLoop,
    descriptor: int,
    cut_at: Callable[[], float],
) -> None:
    """Take a server that has stopped off its loop, when its last task has ended.

    Args:
        native: The server.
        loop: The loop, on which this runs.
        descriptor: What `attach` returned.
        cut_at: When tasks are left whose calls are over, by `time.monotonic`; it may come closer.
            They get a moment at the least.
    """
    # Whatever the calls' ends have left in the inbox: the cancellations.
    native.run_events()
    pending: Iterable[asyncio.Task[None]] = native.tasks()
    for seconds in _waits(cut_at):
        if not pending:
            break
        _, pending = await asyncio.wait(pending, timeout=seconds)
    loop.remove_reader(descriptor)
    native.detach_loop()
    for task in pending:
        logger.error("A servicer goes on although its call was cancelled: %r", task)


def _waits(cut_at: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds until the next look, as long as there are any; a moment at the least."""
    least = time.monotonic() + CANCELLATION_TIMEOUT
    while (left := max(least, cut_at()) - time.monotonic()) > 0:
        yield min(left, _LOOK_AGAIN)


class LoopThread:
    """A thread with an asyncio loop, for a server that has no loop around it.

    What runs on the loop may end it, and there may be no descriptors for one. Then the calls of
    that moment end with UNAVAILABLE, and the next one asks for another thread.
    """

    def __init__(
        self,
        native: _engine.Server,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        """Start the thread; it is a daemon, as all threads of a server.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._native = native
        self._loop_factory = loop_factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._descriptor = -1
        self._stopping: asyncio.Event | None = None
        self._cut_at = time.monotonic  # see `detach`
        # Set when the loop runs, or never will.
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grpc-asyncio", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        runner = asyncio.Runner(loop_factory=self._loop_factory)
        failure: BaseException | None = None
        try:
            runner.get_loop()  # before there is a coroutine that nobody would await
            runner.run(self._serve())
        except BaseException as error:
            failure = error
        finally:
            if self._loop is not None and self._descriptor >= 0:
                self._loop.remove_reader(self._descriptor)
            # Before the loop's tasks are cancelled: of their calls it is not the servicers that
            # failed.
            self._native.lose_loop()
            self._has_begun.set()
            if failure is not None:
                log_seldom("The asyncio loop of the server has ended, or cannot begin", failure)
                failure = None  # whose traceback has this frame
            try:
                runner.close()
            except BaseException as error:
                log_seldom("The asyncio loop of the server cannot be closed", error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._descriptor = attach(self._native, self._loop)
        self._has_begun.set()
        await self._stopping.wait()
        descriptor, self._descriptor = self._descriptor, -1
        await detach(self._native, self._loop, descriptor, self._cut_at)

    def stop(self, cut_at: Callable[[], float]) -> None:
        """End the loop when the calls on it have ended; may be called on any thread.

        Args:
            cut_at: As `detach` takes it.
        """
        self._has_begun.wait(CANCELLATION_TIMEOUT)
        self._cut_at = cut_at
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._stopping.set)

    def has_ended(self) -> bool:
        """Whether nothing runs on it any more."""
        return not self._thread.is_alive()

    def join(self, cut_at: Callable[[], float]) -> None:
        """Wait for the end of the thread, as long as its tasks have."""
        if threading.current_thread() is not self._thread:
            for seconds in _waits(cut_at):
                if not self._thread.is_alive():
                    break
                self._thread.join(seconds)


class _Seldom:
    """A log that gets one line a second at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0.0
        self._unsaid = 0

    def __call__(self, message: str, error: BaseException) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                self._unsaid += 1
                return
            self._next = now + 1.0
            unsaid, self._unsaid = self._unsaid, 0
        more = f" ({unsaid} such lines were left out)" if unsaid else ""
        logger.error("%s: %s%s", message, text_of(error), more, exc_info=exc_info_of(error))


log_seldom = _Seldom()
