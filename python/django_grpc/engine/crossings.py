"""Calls that go back and forth between an asyncio loop and a thread while their handler is found.

An ordinary interceptor runs on a thread, and what it continues with may be async again: it then
waits on its thread for the loop. The ordinary ones inside run on the thread that waits for them
already, so that no call waits for a thread that others hold while they wait for one.

An async interceptor may put a timeout around what it continues with, or continue more than once, at
the same time or again. So what happens is a tree: a `Crossing` is where coroutines run, a `Visit`
one of its requests to a thread, each with its own end. A visit is on the thread that waits for its
crossing, or on another one while that is busy.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import enum
import functools
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from django_grpc.context_variables import adopt
from django_grpc.engine.loops import log_seldom
from django_grpc.engine.surroundings import inside, log_exception
from django_grpc.shortage import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from django_grpc.engine.types import Surroundings

#: Seconds after which a thread that the system has refused is asked for again.
_ASK_AGAIN = 0.5


class Look(enum.Enum):
    """What a thread finds when it looks for a job."""

    TAKE = enum.auto()
    WAIT = enum.auto()
    LEAVE = enum.auto()


class CrossingSchedule:
    """How many threads there are, and which of them runs: a value, without threads and locks.

    While a job is queued and fewer threads run than may, one of those that idle is awake, or a
    thread is wanted. For that, after `queued`, `waits` and each `Look.TAKE` one that idles is to be
    woken, and a thread to be started if one `is_wanted`; after `is_back`, one is to be woken.
    """

    def __init__(self, limit: int, most_waiting: int) -> None:
        """Have no thread.

        Args:
            limit: How many run at the same time, without those that wait for their loop.
            most_waiting: How many of these are not counted.
        """
        self._limit = limit
        self._most_waiting = most_waiting
        self.jobs = 0
        self.threads = 0
        # Those among the threads that look for a job, or will: of their own accord, when woken, or
        # when they have begun.
        self.idle = 0
        self.waiting = 0
        self.is_closed = False

    @property
    def most(self) -> int:
        """How many threads may run now."""
        return self._limit + min(self.waiting, self._most_waiting)

    @property
    def running(self) -> int:
        """How many threads have a job."""
        return self.threads - self.idle

    @property
    def is_wanted(self) -> bool:
        """Whether one more thread is to be started."""
        return self.jobs > self.idle and self.threads < self.most

    @property
    def is_hopeless(self) -> bool:
        """Whether, without one more thread, nobody can run a job: all wait for their loop."""
        return self.threads <= self.waiting

    @property
    def has_surplus(self) -> bool:
        """Whether a thread that has stepped in for one that waited, which is back, may end."""
        return self.threads > self.most

    def started(self) -> None:
        """Count a thread; it looks when it has begun."""
        self.threads += 1
        self.idle += 1

    def queued(self) -> None:
        """Count a job."""
        self.jobs += 1

    def refused(self) -> None:
        """Forget the jobs that are queued."""
        self.jobs = 0

    def finished(self) -> None:
        """Have a thread look again that has done its job."""
        self.idle += 1

    def waits(self) -> None:
        """Do not count a thread, which runs and now waits for its loop."""
        self.waiting += 1

    def is_back(self) -> None:
        """Count it again; one that idles may be surplus now."""
        self.waiting -= 1

    def look(self) -> Look:
        """Say what an idle thread does."""
        if self.jobs and self.running < self.most:
            self.jobs -= 1
            self.idle -= 1
            return Look.TAKE
        # If there are jobs, as many run as may: one of those takes them.
        if self.has_surplus or (self.is_closed and not self.jobs):
            self.threads -= 1
            self.idle -= 1
            return Look.LEAVE
        return Look.WAIT


class _Job(NamedTuple):
    run: Callable[[], None]
    refuse: Callable[[NoThreadError], None]


class CrossingThreads:
    """Daemon threads for ordinary code of calls on a loop, beside the loop's default executor.

    That one is the user's, who may well wait for it in an interceptor. A thread that waits for its
    loop does not count, within a bound: many calls may wait in async interceptors at once.

    When the system refuses a thread, calls share those that there are, and one is asked for again;
    when all of them wait for their loop, calls are refused.
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
        self._exit_callbacks = exit_callbacks
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._schedule = CrossingSchedule(limit, self.MOST_WAITING)

    def submit(self, run: Callable[[], None], refuse: Callable[[NoThreadError], None]) -> bool:
        """Have a job run.

        Args:
            run: Called on one of the threads; raises nothing.
            refuse: Called instead, on any thread, when none can run it and none can be started;
                raises nothing.

        Returns:
            Whether the jobs have the threads that they may have. If not, `ask_again` soon.
        """
        with self._changed:
            self._jobs.append(_Job(run, refuse))
            self._schedule.queued()
        return self.ask_again()

    def ask_again(self) -> bool:
        """Start a thread if one is missing, as `submit` does."""
        with self._changed:
            error, refused = self._call_for_one()
        _tell_shortage(error, refused)
        return error is None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do not count this thread, which waits for its loop."""
        with self._changed:
            self._schedule.waits()
        self.ask_again()
        try:
            yield
        finally:
            with self._changed:
                self._schedule.is_back()
                if self._schedule.has_surplus:
                    self._changed.notify()

    def close(self) -> None:
        """End the threads as soon as they have nothing to do."""
        with self._changed:
            self._schedule.is_closed = True
            self._changed.notify_all()

    def _call_for_one(self) -> tuple[RuntimeError | None, list[_Job]]:
        """Wake a thread and start one, as far as they are needed.

        Returns:
            Why none could be started, and the jobs that nobody can run therefore.
        """
        if not self._jobs:
            return None, []
        self._changed.notify()
        if not self._schedule.is_wanted:
            return None, []
        try:
            threading.Thread(target=self._run, name="grpc-interceptor", daemon=True).start()
        except RuntimeError as error:
            refused: list[_Job] = []
            if self._schedule.is_hopeless:
                refused.extend(self._jobs)
                self._jobs.clear()
                self._schedule.refused()
            return error, refused
        self._schedule.started()
        return None, []

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.run()
            except BaseException:  # or the place of this thread would be lost for ever
                log_exception("A thread for interceptors goes on after an error")
            del job  # while it waits, nothing of the call may stay
            with self._changed:
                self._schedule.finished()
        for callback in self._exit_callbacks:
            callback()

    def _next(self) -> _Job | None:
        with self._changed:
            while (found := self._schedule.look()) is Look.WAIT:
                self._changed.wait()
            if found is Look.LEAVE:
                return None
            job = self._jobs.popleft()
        self.ask_again()  # after a shortage there may be room for more
        return job


def _tell_shortage(error: RuntimeError | None, refused: list[_Job]) -> None:
    if error is None:
        return
    for job in refused:
        refusal = NoThreadError("The server has no thread for its interceptors")
        refusal.__cause__ = error
        job.refuse(refusal)
    log_seldom("Cannot start a thread for interceptors", error)


class _Kind(enum.Enum):
    JOB = enum.auto()
    """A visit that the thread, which waits, is to run meanwhile."""
    REQUEST = enum.auto()
    """A coroutine function that the task is to await, and where the thread waits for it."""
    RESULT = enum.auto()
    ERROR = enum.auto()
    END = enum.auto()
    """Nobody waits for the thread any more."""


class _Message(NamedTuple):
    kind: _Kind
    value: Any
    # The sender's variables: what one side has set, the other one sees.
    variables: contextvars.Context


_Inbox = queue.SimpleQueue[_Message]


class Crossing:
    """Where coroutines of a call run, for a thread that waits for them if there is one.

    Used on the loop only. Several tasks may use it at once: an async interceptor may continue more
    than once, and may give up what it has begun.
    """

    def __init__(
        self,
        threads: CrossingThreads,
        surroundings: Surroundings | None,
        host: _Inbox | None = None,
    ) -> None:
        """Begin.

        Args:
            threads: Those of the server.
            surroundings: What is put around what they run.
            host: Where a thread waits, which can do something else meanwhile.
        """
        self._threads = threads
        self._surroundings = surroundings
        self._host = host
        # Visits that a task waits for, and how many may occupy the host, whether one waits or not.
        self._visits: dict[Visit, asyncio.Task[Any] | None] = {}
        self._unfinished = 0

    async def on_thread(self, function: Callable[[Visit], Any]) -> Any:
        """Return what a function returns on a thread, and await what it asks for meanwhile."""
        visit = Visit(function, self._threads, self._surroundings, self._finished)
        self._visits[visit] = asyncio.current_task()
        try:
            self._offer(visit)
            return await visit.outcome()
        finally:
            del self._visits[visit]

    def close(self) -> None:
        """Have the host wait no longer. What still runs there is cancelled; it would hold it up."""
        self._host = None
        for visit, task in tuple(self._visits.items()):
            visit.give_up()
            if task is not None:
                task.cancel()

    def _offer(self, visit: Visit) -> None:
        # Whoever takes it first runs it. The host waits for nobody but these visits, so that none
        # waits for a thread that others hold while they wait for one.
        if self._host is not None:
            self._host.put(_Message(_Kind.JOB, visit, contextvars.Context()))
        if self._host is None or self._unfinished:
            refuse = visit.refuse if self._host is None else _wait_for_host
            run = functools.partial(visit.run, self._surroundings)
            if not self._threads.submit(run, refuse):
                self._ask_again_later()
        self._unfinished += 1

    def _finished(self) -> None:
        self._unfinished -= 1

    def _ask_again_later(self) -> None:
        asyncio.get_running_loop().call_later(_ASK_AGAIN, self._ask_again)

    def _ask_again(self) -> None:
        if not self._threads.ask_again():
            self._ask_again_later()


def _wait_for_host(error: NoThreadError) -> None:
    pass


class Visit:
    """A function that runs on a thread, and a task that waits for it, of which one runs at a time.

    The thread asks the task for coroutines. Once the task has given up they are refused.
    """

    def __init__(
        self,
        function: Callable[[Visit], Any],
        threads: CrossingThreads,
        surroundings: Surroundings | None,
        finished: Callable[[], None],
    ) -> None:
        """Begin in the task.

        Args:
            function: What is to run.
            threads: Those of the server.
            surroundings: What is put around what they run.
            finished: Called on the loop when the function has returned.
        """
        self._function = function
        self._threads = threads
        self._surroundings = surroundings
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._variables = contextvars.copy_context()
        # Held by who runs it.
        self._claim = threading.Lock()
        # The rest is the loop's, but for looking.
        self._is_over = False
        self._messages: asyncio.Queue[_Message] = asyncio.Queue()
        # Of the request that is being answered.
        self._inbox: _Inbox | None = None

    # On the loop

    async def outcome(self) -> Any:
        """Return what the function returns, and await what it asks for meanwhile."""
        try:
            while (message := await self._messages.get()).kind is _Kind.REQUEST:
                adopt(message.variables)
                function, self._inbox = message.value
                answer = await self._answer(function, self._inbox)
                inbox, self._inbox = self._inbox, None
                inbox.put(answer)
                del answer
        finally:
            self.give_up()
        adopt(message.variables)
        try:
            return _outcome(message)
        finally:
            del message

    async def _answer(
        self, function: Callable[[Crossing], Awaitable[Any]], inbox: _Inbox
    ) -> _Message:
        crossing = Crossing(self._threads, self._surroundings, inbox)
        try:
            return _Message(_Kind.RESULT, await function(crossing), contextvars.copy_context())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return _Message(_Kind.ERROR, error, contextvars.copy_context())
        finally:
            crossing.close()

    def give_up(self) -> None:
        """Answer nothing any more that the thread asks for. May be called more than once."""
        self._is_over = True
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.put(_END)
        while not self._messages.empty():
            self._receive(self._messages.get_nowait())

    def _receive(self, message: _Message) -> None:
        if not self._is_over:
            self._messages.put_nowait(message)
        elif message.kind is _Kind.REQUEST:
            _, inbox = message.value
            inbox.put(_END)

    def _receive_outcome(self, message: _Message) -> None:
        self._finished()
        self._receive(message)

    # On a thread

    def run(self, surroundings: Surroundings | None = None) -> None:
        """Run the function, unless another thread does; raises nothing.

        Args:
            surroundings: What is to be put around it, if nothing is yet.
        """
        if self._claim.acquire(blocking=False):
            with inside(surroundings):
                message = self._perform()
            self._tell(self._receive_outcome, message)

    def refuse(self, error: NoThreadError) -> None:
        """Say that no thread can run it; on any thread."""
        if self._claim.acquire(blocking=False):
            message = _Message(_Kind.ERROR, error, contextvars.Context())
            self._tell(self._receive_outcome, message)

    def on_loop(self, function: Callable[[Crossing], Awaitable[Any]]) -> Any:
        """Return what a coroutine function returns in the task.

        Raises:
            concurrent.futures.CancelledError: The task has given up.
        """
        inbox: _Inbox = queue.SimpleQueue()
        request = _Message(_Kind.REQUEST, (function, inbox), contextvars.copy_context())
        if not self._tell(self._receive, request):
            raise concurrent.futures.CancelledError
        del request
        while True:
            with self._threads.waiting():
                message = inbox.get()
            if message.kind is not _Kind.JOB:
                break
            message.value.run()
            del message  # while it waits, nothing of the visit may stay
        if message.kind is _Kind.END:
            raise concurrent.futures.CancelledError
        adopt(message.variables)
        try:
            return _outcome(message)
        finally:
            del message

    def _perform(self) -> _Message:
        if self._is_over:  # its peer has gone, or its time, while it was queued
            return _END
        variables = self._variables
        try:
            return _Message(_Kind.RESULT, variables.run(self._function, self), variables)
        except BaseException as error:
            return _Message(_Kind.ERROR, error, variables)

    def _tell(self, receive: Callable[[_Message], None], message: _Message) -> bool:
        try:
            self._loop.call_soon_threadsafe(receive, message)
        except RuntimeError:  # the loop is closed: nobody waits
            return False
        return True


_END = _Message(_Kind.END, None, contextvars.Context())


def _outcome(message: _Message) -> Any:
    if message.kind is not _Kind.ERROR:
        return message.value
    try:
        raise cast("BaseException", message.value)
    finally:
        del message  # whose exception has this frame in its traceback
