"""What is to become of the worker processes: the supervisor's decisions, without what it does.

`Fleet` is a value. It is told what happens and what time it is (of `time.monotonic`), and returns
what to do; it starts nothing, ends nothing and reads no clock, so its rules are tested by random
orders of events.
"""

import dataclasses
import enum
import logging
import signal
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from django_grpc.lifecycle.stop_signals import TOGETHER
from django_grpc.processes.crashes import EARLY, LIMIT, Failures
from django_grpc.processes.protocol import Plan

#: Seconds that a worker gets beyond its grace: for what comes after the drain.
MARGIN: Final = 5.0
#: Seconds that a worker gets which is ended before it listens: it has no calls.
START_MARGIN: Final = 2.0
#: Seconds that a worker which hangs gets to write down where.
DUMP_MARGIN: Final = 2.0
#: Seconds that a worker which listens gets for its health checks to pass, before it is taken in all
#: the same: what they find may be as wrong with the others.
WARM_UP: Final = 10.0
#: Seconds that a worker which was told to end by others waits for the one that takes its place.
LEAVE_PATIENCE: Final = 30.0
#: The most seconds of silence that one look can find: a parent that stood still itself between two
#: looks has not seen what the worker did meanwhile.
LONGEST_LOOK: Final = 2.0
#: Processes that there must be room for beside those that are wanted: some that drain, and one that
#: is started in advance.
SPARE_ROOM: Final = 8

_RELOAD: Final = "reload"
_SIGNAL: Final = "signal"
_HANG: Final = "hang"
_CRASH: Final = "crash"
#: Reasons for which all may be replaced one right after the other; for others each waits until the
#: one before has ended.
_URGENT: Final = (_RELOAD, _SIGNAL)


class State(enum.Enum):
    """What a worker is at."""

    #: Its process has been started.
    STARTING = enum.auto()
    #: It can take connections; its health checks have yet to pass.
    LISTENING = enum.auto()
    #: It is given connections.
    SERVING = enum.auto()
    #: It was told to end, or ends by itself.
    DRAINING = enum.auto()


class Figures(NamedTuple):
    """What is to be known of a worker for a decision.

    Attributes:
        is_ready: Whether it says that it is ready for calls.
        open: Its connections.
    """

    is_ready: bool = False
    open: int = 0


@dataclasses.dataclass(slots=True)
class Member:
    """A worker, as decisions see it.

    Attributes:
        key: Names it in events and actions.
        generation: Which load of the code it runs.
        started_at: When its process was started.
        is_first: Whether it is the one that shows whether its generation's code can serve.
        pid: Its process.
        state: What it is at.
        listens_at: When it said that it can take connections.
        serves_at: When it was first given any; None: it never was.
        replaced_for: Why it is to be replaced; None: it is not.
        leave_by: When it drains even if nobody takes its place; None: it stays until then.
        kill_at: When it is killed, if it has not ended; None: never.
        pulse: What its heartbeat was when it was last looked at.
        silence: Seconds for which that has not changed.
    """

    key: int
    generation: int
    started_at: float
    is_first: bool
    pid: int = 0
    state: State = State.STARTING
    listens_at: float = 0.0
    serves_at: float | None = None
    replaced_for: str | None = None
    leave_by: float | None = None
    kill_at: float | None = None
    pulse: int = 0
    silence: float = 0.0

    def __str__(self) -> str:
        return f"Worker process {self.pid}" if self.pid else "A worker process"


class Start(NamedTuple):
    """Start a process, and say `Fleet.started` or `Fleet.cannot_start`."""

    worker: int
    is_first: bool


class Task(enum.Enum):
    """What to do with a worker."""

    #: Give it connections.
    TAKE_IN = enum.auto()
    #: Have it say NOT_SERVING to health checks.
    ANNOUNCE = enum.auto()
    #: Give it no more connections, and have it end with its calls.
    DRAIN = enum.auto()
    #: End it politely; it does not listen yet.
    TERMINATE = enum.auto()
    #: Have it write down where it hangs, and end.
    ABORT = enum.auto()
    #: End it at once.
    KILL = enum.auto()


class Order(NamedTuple):
    """Do something with a worker."""

    task: Task
    worker: int


class Log(NamedTuple):
    """Write to the log."""

    level: int
    text: str


class Say(NamedTuple):
    """Print a line for the operator."""

    text: str


class Count(NamedTuple):
    """Count that a worker was replaced."""

    reason: str


class Up(NamedTuple):
    """Tell, once, that all workers serve."""


class Reloading(NamedTuple):
    """Tell the service manager that a reload has begun."""


class Reloaded(NamedTuple):
    """Tell the service manager how the reload has ended."""

    text: str


class Stopping(NamedTuple):
    """Tell the service manager that the server ends."""


class CloseAddress(NamedTuple):
    """Take in who has connected by now, and listen no more."""


class EndAtOnce(NamedTuple):
    """End all processes, this one too, as a second signal demands."""

    number: int


Action = (
    Start
    | Order
    | Log
    | Say
    | Count
    | Up
    | Reloading
    | Reloaded
    | Stopping
    | CloseAddress
    | EndAtOnce
)


class Fleet:
    """Decides which worker processes there are.

    Events change what is known; `decide` compares what serves with what is wanted, and returns
    what to do about it. Recycling, reloading, a changed number and a death are all the same to it:
    workers that are to be replaced, and more or fewer than wanted. Its rules:

    - A worker that serves is drained only if enough others do, and the server is ended for a
      failure only if none has served for long.
    - The last SIGHUP decides: what still starts of older code is ended, and no account of its
      failures is kept.
    - Workers that never came to serve and workers that ended while they served are two accounts.
    - Of code that has not shown that it can serve one worker is started in advance, and one for
      each that is missing: those do not wait for it.

    Attributes:
        plan: The settings in force.
        wanted: How many workers are to serve.
        failure: What ended the server, and the exit status; None: nothing did.
    """

    def __init__(self, plan: Plan, room: int) -> None:
        """Begin without a worker.

        Args:
            plan: The parent's part of the settings.
            room: How many processes there may be, those that drain among them.
        """
        self.plan = plan
        self.failure: tuple[str, int] | None = None
        self._room = room
        self._most_wanted = max(1, room - SPARE_ROOM)
        self.wanted = min(plan.workers, self._most_wanted)
        self._members: dict[int, Member] = {}
        self._last_key = 0
        self._starts = Failures()
        self._crashes = Failures()
        # Workers started since the same SIGHUP are one generation; the first that listens proves
        # that its code can serve.
        self._generation = 1
        self._proved_generation = 0
        # By how many SIGTTIN and SIGTTOU have changed what is wanted since that SIGHUP.
        self._changed_by = 0
        self._has_listened = False
        self._is_up = False
        self._is_reloading = False
        self._has_said_full = False
        self._stopped_at: float | None = None
        self._drain_at = 0.0
        self._has_closed_address = False
        self._is_draining = False
        self._actions: list[Action] = []

    # What there is

    @property
    def members(self) -> Iterable[Member]:
        """The workers, those that drain among them, in the order in which they were started."""
        return self._members.values()

    @property
    def is_stopping(self) -> bool:
        """Whether the server ends."""
        return self._stopped_at is not None

    @property
    def is_draining(self) -> bool:
        """Whether the address has been given back, and nobody serves any more."""
        return self._is_draining

    @property
    def is_over(self) -> bool:
        """Whether the last worker of a server that drains has ended."""
        return self._is_draining and not self._members

    def _in(self, *states: State) -> list[Member]:
        return [it for it in self._members.values() if it.state in states]

    @property
    def serving(self) -> list[Member]:
        """Those that are given connections."""
        return self._in(State.SERVING)

    # What happens to workers

    def started(self, worker: int, pid: int) -> None:
        """Hear that a process was started."""
        self._members[worker].pid = pid

    def cannot_start(self, worker: int, reason: str, now: float) -> None:
        """Hear that a process can't be started."""
        member = self._members.pop(worker)
        if self.is_stopping:
            return
        self._start_failed(member, f"can't be started: {reason}", 1, now)

    def listens(self, worker: int, plan: Plan, now: float) -> None:
        """Hear that a worker can take connections.

        Args:
            worker: The worker.
            plan: The settings, as it has read them.
            now: The time.
        """
        member = self._members[worker]
        if member.state is not State.STARTING:
            return
        member.state = State.LISTENING
        member.listens_at = now
        self._has_listened = True
        self._starts.succeeded(member.started_at)
        if member.generation != self._generation:
            return
        self.plan = plan
        if self._proved_generation != self._generation:
            self._proved_generation = self._generation
            self._set_wanted(max(1, plan.workers + self._changed_by))

    def wants_to_leave(self, worker: int, now: float) -> None:
        """Hear that a worker was told to end by another process than its parent.

        It serves on until somebody takes its place.
        """
        member = self._members[worker]
        if self.is_stopping:
            return
        if member.state is State.SERVING:
            self._log(
                logging.INFO,
                f"{member} was told to end by another process; it is replaced first.",
            )
            member.replaced_for = member.replaced_for or _SIGNAL
            member.leave_by = now + LEAVE_PATIENCE
        elif member.state is State.LISTENING:
            self._drain(member, now)

    def drains_itself(self, worker: int, now: float) -> None:
        """Hear that a worker has begun to drain without being told to."""
        member = self._members[worker]
        if member.state in (State.LISTENING, State.SERVING):
            self._log(logging.INFO, f"{member} drains: something in it stopped its server.")
            self._drain(member, now)

    def hung_up(self, worker: int, now: float) -> None:
        """Hear that a worker says nothing more: it has ended, or ought to."""
        member = self._members[worker]
        if member.kill_at is None:
            member.kill_at = now + MARGIN

    def looked(self, worker: int, pulse: int, elapsed: float) -> None:
        """Note a worker's heartbeat, so many seconds after the last look.

        Args:
            worker: The worker.
            pulse: Any number that is another one whenever Python runs in the worker.
            elapsed: Seconds since the last look.
        """
        member = self._members[worker]
        if pulse != member.pulse:
            member.pulse = pulse
            member.silence = 0.0
        else:
            member.silence += min(elapsed, LONGEST_LOOK)

    def replace(self, worker: int, reason: str) -> None:
        """Have a worker that serves replaced by a plan."""
        member = self._members[worker]
        member.replaced_for = member.replaced_for or reason

    def ended(self, worker: int, status: int, now: float) -> None:
        """Hear that a process has ended.

        Args:
            worker: The worker.
            status: Its exit status, negative for a signal.
            now: The time.
        """
        member = self._members.pop(worker)
        if member.state is State.DRAINING or self.is_stopping:
            return
        end = describe_end(status)
        if member.state is State.SERVING:
            self._log(logging.WARNING, f"{member} {end}; a new one takes its place.")
            self._lost(member, _CRASH, now)
        else:
            self._start_failed(member, f"{end} before it could serve", status, now)

    def _lost(self, member: Member, reason: str, now: float) -> None:
        """Note that one that served is there no more, and nobody wanted it so."""
        self._actions.append(Count(reason))
        if member.serves_at is not None and now - member.serves_at >= EARLY:
            # A new chance for what could not take another's place before.
            self._starts.forget()
            return
        self._crashes.failed(member.started_at, now)
        if self._abandons_reload(member):
            return
        if self._crashes.is_hopeless and not self._has_proved_one(now):
            self._fail(
                f"The server ends: {LIMIT} times in a row a worker process ended within "
                f"{EARLY:g} s. What it said stands above.",
                1,
                now,
            )

    def _has_proved_one(self, now: float) -> bool:
        return any(it.serves_at is not None and now - it.serves_at >= EARLY for it in self.serving)

    def _start_failed(self, member: Member, what: str, status: int, now: float) -> None:
        if not self._has_listened:
            self._fail(
                f"The server can't start: its first worker process {what}.",
                status if status > 0 else 1,
                now,
            )
            return
        self._log(logging.ERROR, f"{member} {what}.")
        self._starts.failed(member.started_at, now)
        is_proved = self._proved_generation == self._generation
        if (not is_proved or self._starts.is_hopeless) and self._abandons_reload(member):
            return
        if self._starts.is_hopeless and not self._in(State.LISTENING, State.SERVING):
            self._fail(
                f"The server ends: {LIMIT} times in a row a worker process ended before it could "
                "serve, and no other serves. What it said stands above.",
                1,
                now,
            )

    def _abandons_reload(self, member: Member) -> bool:
        """Give the new code up if a worker of it failed, and some of before still serve."""
        are_old = any(it.replaced_for == _RELOAD for it in self.serving)
        if not (self._is_reloading and member.generation == self._generation and are_old):
            return False
        for it in self._members.values():
            if it.replaced_for == _RELOAD and it.state is not State.DRAINING:
                it.replaced_for = None if it.leave_by is None else _SIGNAL
        self._is_reloading = False
        text = "The new code can't serve, see above: the worker processes of before go on."
        self._log(logging.ERROR, text)
        self._actions.append(Reloaded(text))
        return True

    # What the operator wants

    def reload(self) -> None:
        """Have all workers replaced by ones with the code and the settings of now."""
        if self.is_stopping:
            return
        self._actions.append(Say("Received SIGHUP. The worker processes are restarted one by one."))
        self._actions.append(Reloading())
        self._is_reloading = True
        self._generation += 1
        self._changed_by = 0
        self._starts.forget()
        self._crashes.forget()
        for member in self._members.values():
            member.replaced_for = _RELOAD

    def more(self) -> None:
        """Want one worker more."""
        self._change_by(1, "SIGTTIN")

    def fewer(self) -> None:
        """Want one worker less, but one at least."""
        self._change_by(-1, "SIGTTOU")

    def _change_by(self, count: int, name: str) -> None:
        if self.is_stopping:
            return
        before = self.wanted
        self._set_wanted(max(1, before + count))
        self._changed_by += self.wanted - before
        wanted = "1 worker process" if self.wanted == 1 else f"{self.wanted} worker processes"
        said = f"There will be {wanted}{', as before' if self.wanted == before else ''}."
        self._actions.append(Say(f"Received {name}. {said}"))

    def _set_wanted(self, count: int) -> None:
        if count > self._most_wanted:
            self._log(
                logging.ERROR,
                f"There is room for {self._most_wanted} worker processes, not for {count}: it was "
                "made when the server was started. Start it anew with as many 'workers'.",
            )
        self.wanted = min(count, self._most_wanted)

    def stop(self, number: signal.Signals, now: float) -> None:
        """Stop the server, or end it at once if it has been told so before."""
        if self._stopped_at is None:
            self._begin_stop(self.plan.drain_delay, now)
            self._actions.append(
                Say(
                    f"Received {number.name}. Starting graceful shutdown, "
                    f"calls in flight have {self.plan.grace:g} s to end..."
                )
            )
        elif now - self._stopped_at >= TOGETHER:
            self._actions.append(EndAtOnce(number))

    def _fail(self, message: str, status: int, now: float) -> None:
        self.failure = (message, status)
        self._begin_stop(0.0, now)

    def _begin_stop(self, delay: float, now: float) -> None:
        self._stopped_at = now
        self._drain_at = now + delay
        self._actions.append(Stopping())
        for member in self._in(State.LISTENING, State.SERVING):
            self._order(Task.ANNOUNCE, member)

    # Decisions

    def decide(self, now: float, figures: Mapping[int, Figures]) -> list[Action]:
        """Return what is to be done, in this order; call it again when that has been done.

        Args:
            now: The time.
            figures: Those of the workers that listen or serve.
        """
        self._look_at_clock(now)
        if self.is_stopping:
            self._go_on_stopping(now)
        else:
            self._end_outdated(now)
            self._take_in(now, figures)
            self._retire(now, figures)
            self._report_progress()
            self._start_missing(now)
        actions, self._actions = self._actions, []
        # What an event called for may be about one that has ended since.
        return [it for it in actions if not isinstance(it, Order) or it.worker in self._members]

    def next_deadline(self, now: float) -> float | None:
        """Return when `decide`, which has just been called, is to be called next.

        Args:
            now: The time for which it was called.
        """
        moments = [it.kill_at for it in self._members.values() if it.kill_at is not None]
        if self.is_stopping:
            if not self._is_draining:
                moments.append(self._drain_at)
            return min(moments, default=None)
        for member in self._members.values():
            limit = self.plan.worker_start_timeout
            if member.state is State.STARTING and limit is not None:
                moments.append(member.started_at + limit)
            elif member.state is State.LISTENING:
                moments.append(member.listens_at + WARM_UP)
            elif member.state is State.SERVING and member.leave_by is not None:
                moments.append(member.leave_by)
        if self._retry_at > now:
            moments.append(self._retry_at)
        return min(moments, default=None)

    @property
    def _retry_at(self) -> float:
        return max(self._starts.retry_at, self._crashes.retry_at)

    def _look_at_clock(self, now: float) -> None:
        for member in list(self._members.values()):
            if member.kill_at is not None and now >= member.kill_at:
                member.kill_at = None
                self._log(logging.WARNING, f"{member} did not end in time and is killed.")
                self._order(Task.KILL, member)
            elif self.is_stopping:
                continue
            elif member.state is State.STARTING:
                self._look_at_start(member, now)
            elif member.state in (State.LISTENING, State.SERVING):
                self._look_at_pulse(member, now)

    def _look_at_start(self, member: Member, now: float) -> None:
        limit = self.plan.worker_start_timeout
        if limit is None or now - member.started_at < limit:
            return
        self._abort(member, now)
        self._start_failed(
            member, f"could not serve after {limit:g} s ('worker_start_timeout')", 1, now
        )

    def _look_at_pulse(self, member: Member, now: float) -> None:
        limit = self.plan.worker_timeout
        if member.serves_at is not None and now - member.serves_at >= EARLY:
            self._crashes.succeeded(member.started_at)
        if limit is None or member.silence < limit:
            return
        self._log(
            logging.ERROR,
            f"{member} hangs: Python has not run in it for {limit:g} s ('worker_timeout'). "
            "It writes down where, and a new one takes its place.",
        )
        self._abort(member, now)
        self._lost(member, _HANG, now)

    def _end_outdated(self, now: float) -> None:
        """End what still starts of older code."""
        for member in self._in(State.STARTING, State.LISTENING):
            if member.generation != self._generation:
                self._drain(member, now)

    def _take_in(self, now: float, figures: Mapping[int, Figures]) -> None:
        """Have those serve that listen and are well, unless no other is."""
        for member in self._in(State.LISTENING):
            are_others = any(figures[it.key].is_ready for it in self.serving)
            is_late = now - member.listens_at >= WARM_UP
            if figures[member.key].is_ready or not are_others or is_late:
                member.state = State.SERVING
                member.serves_at = now
                self._order(Task.TAKE_IN, member)

    def _retire(self, now: float, figures: Mapping[int, Figures]) -> None:
        """Drain those that may go as there are enough others that serve."""
        serving = self.serving
        count = max(0, len(serving) - self.wanted)
        serving.sort(key=lambda it: (it.replaced_for is None, figures[it.key].open))
        for member in serving[:count]:
            self._drain(member, now)
        for member in serving[count:]:
            if member.leave_by is not None and now >= member.leave_by:
                self._log(
                    logging.WARNING,
                    f"{member} ends, as it was told to, although no other could take its place "
                    f"for {LEAVE_PATIENCE:g} s.",
                )
                self._drain(member, now)

    def _report_progress(self) -> None:
        serving = self.serving
        if len(serving) < self.wanted:
            return
        if not self._is_up:
            self._is_up = True
            self._actions.append(Up())
        is_left = any(it.replaced_for == _RELOAD for it in serving)
        if self._is_reloading and not is_left:
            self._is_reloading = False
            count = len(serving)
            text = f"All {count} worker processes have been restarted."
            if count == 1:
                text = "The worker process has been restarted."
            self._actions.append(Say(text))
            self._actions.append(Reloaded(text))

    def _start_missing(self, now: float) -> None:
        if now < self._retry_at:
            return
        starting = len(self._in(State.STARTING, State.LISTENING))
        missing = max(0, self.wanted - len(self.serving)) - starting
        if self._due():
            missing += 1  # in advance of the one that it replaces
        if not self._has_listened:
            missing = min(missing, 1 - starting)  # one shows whether there is anything to serve
        # Those that are ended before they served count too, or a storm of SIGHUP were one of them.
        unborn = sum(it.serves_at is None for it in self._members.values())
        missing = min(missing, self.wanted + 1 - unborn)
        if missing <= 0:
            return
        if len(self._members) >= self._room:
            self._say_full()
            return
        self._has_said_full = False
        self._start(now)  # the next one is decided when it is known whether this one can be

    def _say_full(self) -> None:
        if not self._has_said_full:
            self._has_said_full = True
            self._log(
                logging.ERROR,
                f"No worker process can be started: there are {len(self._members)}, as many as "
                "there is room for. One of them has to end first.",
            )

    def _due(self) -> bool:
        """Whether one that serves is to be replaced now."""
        is_one_leaving = any(
            it.replaced_for not in (None, *_URGENT) for it in self._in(State.DRAINING)
        )
        return any(
            it.replaced_for in _URGENT or (it.replaced_for is not None and not is_one_leaving)
            for it in self.serving
        )

    def _start(self, now: float) -> None:
        self._last_key += 1
        is_proved = self._proved_generation == self._generation
        is_first = not is_proved and not any(
            it.is_first and it.generation == self._generation
            for it in self._in(State.STARTING, State.LISTENING)
        )
        self._members[self._last_key] = Member(self._last_key, self._generation, now, is_first)
        self._actions.append(Start(self._last_key, is_first))

    # The end

    def _go_on_stopping(self, now: float) -> None:
        for member in self._in(State.STARTING):
            self._drain(member, now)
        if self._is_draining or now < self._drain_at:
            return
        if not self._has_closed_address:
            # In a decision of its own: who has connected by now is given to those that still serve.
            self._has_closed_address = True
            self._actions.append(CloseAddress())
            return
        self._is_draining = True
        for member in self._in(State.LISTENING, State.SERVING):
            self._drain(member, now)

    def _drain(self, member: Member, now: float) -> None:
        if member.state is State.STARTING:
            self._order(Task.TERMINATE, member)
            seconds = START_MARGIN
        else:
            self._order(Task.DRAIN, member)
            seconds = self.plan.grace + MARGIN
            if member.state is State.SERVING and member.replaced_for is not None:
                self._actions.append(Count(member.replaced_for))
                self._log(logging.INFO, f"{member} is replaced: {member.replaced_for}.")
        member.state = State.DRAINING
        member.kill_at = now + seconds

    def _abort(self, member: Member, now: float) -> None:
        self._order(Task.ABORT, member)
        member.state = State.DRAINING
        member.kill_at = now + DUMP_MARGIN

    def _order(self, task: Task, member: Member) -> None:
        self._actions.append(Order(task, member.key))

    def _log(self, level: int, text: str) -> None:
        self._actions.append(Log(level, text))


def describe_end(status: int) -> str:
    """Say how a process ended, as the end of a sentence that begins with it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
