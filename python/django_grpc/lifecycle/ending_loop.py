"""The event loop of a process that serves async methods, and its end, whatever runs on it."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from django_grpc import building, conf
from django_grpc.engine import loops
from django_grpc.lifecycle import threads
from django_grpc.logs import GuardedLogger

logger = GuardedLogger("django_grpc")

# The seconds that what is left on a loop gets to end in, when the server has drained.
_LEFTOVERS_TIMEOUT: Final = 0.5

# The seconds that one of them may block the loop then, where none of the grace is left.
_BLOCKING_TIMEOUT: Final = 3.0

# The seconds in which a loop has to take a turn, and those between two looks.
_TURN_TIMEOUT: Final = 2.0
_PAUSE: Final = 1.0

# What ends the run of a loop from a task or callback; RuntimeError: it has stopped the loop.
_ENDS: Final = (KeyboardInterrupt, SystemExit, RuntimeError)


class LoopWatch:
    """Sees that a loop goes on at the end of a server: what blocks it may do so for ever.

    A thread of its own looks, from the time on that `watch_from` is given until `end`.

    Attributes:
        error: What the loop's work has raised.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_blocked: Callable[[BaseException | None], object],
    ) -> None:
        """Start the thread.

        Args:
            loop: The loop.
            on_blocked: Called on the thread, once, when the loop has taken no turn for two seconds,
                with what its work has raised until then.

        Raises:
            CommandError: The system refuses the thread.
        """
        self.error: BaseException | None = None
        self._loop = loop
        self._on_blocked = on_blocked
        self._changed = threading.Condition()
        self._next_look: float | None = None
        self._has_ended = False
        threads.start(self._run, name="grpcserver-watch")

    def watch_from(self, at: float) -> None:
        """Have the loop watched from a time of `time.monotonic` on; the latest one counts."""
        with self._changed:
            self._next_look = at if self._next_look is None else max(at, self._next_look)
            self._changed.notify()

    def end(self) -> None:
        """Watch it no more."""
        with self._changed:
            self._has_ended = True
            self._changed.notify()

    def _run(self) -> None:
        while self._wait_for_look():
            if self._takes_turn():
                continue
            with self._changed:
                has_ended = self._has_ended
            if not has_ended:
                self._on_blocked(self.error)
            return

    def _wait_for_look(self) -> bool:
        """Wait until it is time to look; False at the end."""
        with self._changed:
            while not self._has_ended:
                left = None if self._next_look is None else self._next_look - time.monotonic()
                if left is not None and left <= 0:
                    self._next_look = time.monotonic() + _PAUSE
                    return True
                self._changed.wait(left)
            return False

    def _takes_turn(self) -> bool:
        has_turned = threading.Event()
        try:
            self._loop.call_soon_threadsafe(has_turned.set)
        except RuntimeError:  # it is closed
            return True
        return has_turned.wait(_TURN_TIMEOUT)


@contextlib.contextmanager
def making_runner(
    config: conf.ServerConfig, on_blocked: Callable[[BaseException | None], object]
) -> Iterator[tuple[asyncio.Runner, LoopWatch]]:
    """Make a runner, and end what is left on its loop without waiting for what ignores that.

    `asyncio.Runner.close` would wait for ever: for tasks that were cancelled, and for the threads
    of `asyncio.to_thread`.

    Args:
        config: Names the loop.
        on_blocked: As `LoopWatch` takes it; it is watched from the end of the block on.

    Yields:
        The runner, and the watch of its loop.

    Raises:
        CommandError: The system refuses a thread.
    """
    # Its own factory would have the runner set the thread's loop, which only `close` takes back.
    runner = asyncio.Runner(loop_factory=building.loop_factory(config) or asyncio.new_event_loop)
    loop = runner.get_loop()
    process = os.getpid()
    watch: LoopWatch | None = None
    try:
        watch = LoopWatch(loop, on_blocked)
        yield runner, watch
    except BaseException as error:
        if watch is not None:
            watch.error = error
        raise
    finally:
        if os.getpid() == process:
            _end(runner, watch)
        else:
            loops.abandon(loop)


def _end(runner: asyncio.Runner, watch: LoopWatch | None) -> None:
    if watch is not None:
        watch.watch_from(time.monotonic() + _BLOCKING_TIMEOUT)
    try:
        runner.run(_end_leftovers())
    except _ENDS as error:
        logger.error("A task that was left at the end has raised %r", error)
    finally:
        runner.get_loop().close()
        if watch is not None:
            watch.end()
            watch.error = None  # whose frames lead here


async def _end_leftovers() -> None:
    this = asyncio.current_task()
    if tasks := [task for task in asyncio.all_tasks() if task is not this]:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_LEFTOVERS_TIMEOUT)
    generators = asyncio.ensure_future(asyncio.get_running_loop().shutdown_asyncgens())
    await asyncio.wait([generators], timeout=_LEFTOVERS_TIMEOUT)
