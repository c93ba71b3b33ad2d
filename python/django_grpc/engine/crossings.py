"""Calls that go back and forth between an asyncio loop and a thread while their handler is found.

An ordinary interceptor runs on a thread, and what it continues with may be async again: it then
waits on its thread for the loop. Such a call has one thread at the most, whatever the order of its
interceptors: the ordinary ones inside run on the thread that waits for them already. So no call
waits for a thread that others hold while they wait for one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import enum
import logging
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from django_grpc.engine.types import Surroundings

logger = logging.getLogger("django_grpc")


class NoThreadError(RuntimeError):
    """There is no thread for a call, and none can be started."""


class CrossingThreads:
    """Daemon threads for ordinary code of calls on a loop, beside the loop's default executor.

    That one is the user's, who may well wait for it in an interceptor. A thread that waits for its
    loop does not count, within a bound: many calls may wait in async interceptors at once.
    """

    #: Threads that may wait for their loop without being counted. Past it calls wait for their
    #: turn, and get it, as those that wait need no other thread.
    MOST_WAITING = 500

    def __init__(self, limit: int, exit_callbacks: list[Callable[[], object]]) -> None:
        """Start no thread yet.

        Args:
            limit: How many run at the same time, without those that wait for their loop.
            exit_callbacks: What each thread calls before it ends.
        """
        self._limit = limit
        self._exit_callbacks = exit_callbacks
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._waiting = 0
        self._idle = 0
        self._is_closed = False

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job run, which raises nothing.

        Raises:
            NoThreadError: There is no thread, and none can be started.
        """
        with self._changed:
            self._jobs.append(job)
            try:
                self._call_for_one()
            except RuntimeError as error:
                if self._threads == 0:
                    self._jobs.remove(job)
                    raise NoThreadError("The server has no thread for its interceptors") from error

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do not count this thread, which waits for its loop."""
        with self._changed:
            self._waiting += 1
            if self._jobs:
                with contextlib.suppress(RuntimeError):  # no more threads: the others take it
                    self._call_for_one()
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1

    def close(self) -> None:
        """End the threads as soon as they have nothing to do."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _call_for_one(self) -> None:
        if self._idle >= len(self._jobs):
            self._changed.notify()
        elif self._threads < self._most_threads():
            threading.Thread(target=self._run, name="grpc-interceptor", daemon=True).start()
            self._threads += 1

    def _most_threads(self) -> int:
        return self._limit + min(self._waiting, self.MOST_WAITING)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            job()
            del job  # while it waits, nothing of the call may stay
        for callback in self._exit_callbacks:
            callback()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while True:
                # One that stepped in for others, which are back.
                is_surplus = self._threads > self._most_threads()
                if is_surplus or (self._is_closed and not self._jobs):
                    self._threads -= 1
                    return None
                if self._jobs:
                    return self._jobs.popleft()
                self._idle += 1
                self._changed.wait()
                self._idle -= 1


class _Kind(enum.Enum):
    JOB = enum.auto()
    """A function that the thread is to call."""
    REQUEST = enum.auto()
    """A coroutine function that the task is to await."""
    RESULT = enum.auto()
    ERROR = enum.auto()
    END = enum.auto()
    """The task has been cancelled: nobody waits for the thread any more."""


class _Message(NamedTuple):
    kind: _Kind
    value: Any
    # The sender's variables: what one side has set, the other one sees.
    variables: contextvars.Context


class Crossing:
    """One call between its task and a thread, of which only one runs at any time.

    `on_thread` is for the task and `on_loop` for the thread; either may be used inside the other.
    """

    def __init__(self, threads: CrossingThreads, surroundings: Surroundings | None) -> None:
        """Begin in the task."""
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._surroundings = surroundings
        # Calls of `on_loop` that wait on the thread: it can do something else for the task.
        self._waiting = 0
        self._is_abandoned = False
        self._to_thread: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._to_task: asyncio.Future[_Message] | None = None

    async def on_thread(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns on the thread, and await what it asks for meanwhile."""
        if self._is_abandoned:
            raise asyncio.CancelledError
        job = _Message(_Kind.JOB, function, contextvars.copy_context())
        self._to_task = self._loop.create_future()
        if self._waiting:
            self._to_thread.put(job)
        else:
            self._threads.submit(lambda: self._begin(job))
        try:
            while (message := await self._to_task).kind is _Kind.REQUEST:
                _adopt(message.variables)
                answer = await self._answer(message.value)
                self._to_task = self._loop.create_future()
                self._to_thread.put(answer)
        except asyncio.CancelledError:
            # Whatever the thread asks for from now on, nobody is there to answer.
            self._is_abandoned = True
            self._to_thread.put(_Message(_Kind.END, None, contextvars.copy_context()))
            raise
        self._to_task = None  # which has the exception, whose traceback has this frame
        _adopt(message.variables)
        try:
            return _outcome(message)
        finally:
            del message

    async def _answer(self, function: Callable[[], Awaitable[Any]]) -> _Message:
        self._waiting += 1
        try:
            return _Message(_Kind.RESULT, await function(), contextvars.copy_context())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return _Message(_Kind.ERROR, error, contextvars.copy_context())
        finally:
            self._waiting -= 1

    def on_loop(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Return what a coroutine function returns in the call's task.

        Raises:
            concurrent.futures.CancelledError: The call has ended.
        """
        self._tell(_Message(_Kind.REQUEST, function, contextvars.copy_context()))
        while True:
            with self._threads.waiting():
                message = self._to_thread.get()
            if message.kind is not _Kind.JOB:
                break
            self._tell(_perform(message))
        if message.kind is _Kind.END:
            self._to_thread.put(message)  # for those around this, should it be caught
            raise concurrent.futures.CancelledError
        _adopt(message.variables)
        try:
            return _outcome(message)
        finally:
            del message

    def _begin(self, job: _Message) -> None:
        if self._is_abandoned:  # its peer has gone, or its time, while it was queued
            return
        surroundings = self._surroundings
        if surroundings is not None:
            _call_logged(surroundings.enter)
        message = _perform(job)
        if surroundings is not None:
            _call_logged(surroundings.leave)
        self._tell(message)

    def _tell(self, message: _Message) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._receive, message)

    def _receive(self, message: _Message) -> None:
        if self._to_task is not None and not self._to_task.done():
            self._to_task.set_result(message)


def _call_logged(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:
        logger.exception("Exception in what surrounds a call")


def _perform(job: _Message) -> _Message:
    variables = job.variables
    try:
        return _Message(_Kind.RESULT, variables.run(job.value), variables)
    except BaseException as error:
        return _Message(_Kind.ERROR, error, variables)


def _outcome(message: _Message) -> Any:
    if message.kind is not _Kind.ERROR:
        return message.value
    try:
        raise cast("BaseException", message.value)
    finally:
        del message  # whose exception has this frame in its traceback


_MISSING = object()


def _adopt(variables: contextvars.Context) -> None:
    """Set the context variables that the other side has set."""
    for variable, value in variables.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)
