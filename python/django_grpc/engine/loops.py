"""Where a server's async methods run: a loop of the server's own, or one that runs already."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from typing import TYPE_CHECKING

from django_grpc.engine.options import UVLOOP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django_grpc import _engine
    from django_grpc.engine.options import ChannelArgument

logger = logging.getLogger("django_grpc")

#: How long a server that stops waits for servicers that were cancelled, in seconds.
CANCELLATION_TIMEOUT = 2.0


def loop_factory(
    options: Iterable[ChannelArgument] | None,
) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop that a server's options ask for; `None` is asyncio's own.

    Raises:
        ValueError: They ask for uvloop, which is not installed.
    """
    if not any(name == UVLOOP and value for name, value in options or ()):
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


def attach(native: _engine.Server, loop: asyncio.AbstractEventLoop) -> None:
    """Have a loop run a server's async calls. Called on the loop."""
    native.attach_loop(loop.create_task)
    loop.add_reader(native.events_descriptor(), native.run_events)


async def detach(native: _engine.Server, loop: asyncio.AbstractEventLoop) -> None:
    """Take a server that has stopped off its loop, when its last task has ended."""
    # Whatever the calls' ends have left in the inbox: the cancellations.
    native.run_events()
    if tasks := native.tasks():
        _, pending = await asyncio.wait(tasks, timeout=CANCELLATION_TIMEOUT)
        for task in pending:
            logger.error("A servicer goes on although its call was cancelled: %r", task)
    loop.remove_reader(native.events_descriptor())
    native.detach_loop()


class LoopThread:
    """A thread with an asyncio loop, for a server that has no loop around it."""

    def __init__(
        self,
        native: _engine.Server,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        """Start the thread; it is a daemon, as all threads of a server."""
        self._native = native
        self._loop_factory = loop_factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._is_running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grpc-asyncio", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        attach(self._native, self._loop)
        self._is_running.set()
        await self._stopping.wait()
        await detach(self._native, self._loop)

    def stop(self) -> None:
        """End the loop when the calls on it have ended; may be called on any thread."""
        self._is_running.wait(CANCELLATION_TIMEOUT)
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
