"""The parent of the worker processes."""

import contextlib
import functools
import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from django_grpc.lifecycle.output import write_last_words
from django_grpc.log_lines import relieved_of_lines
from django_grpc.logs import GuardedLogger
from django_grpc.processes import fleet, protocol, systemd
from django_grpc.processes.balance import Balancer, accept
from django_grpc.processes.board import Board
from django_grpc.processes.fleet import Figures, Fleet, State, Task
from django_grpc.processes.listeners import (
    BACKLOG,
    ListeningSocket,
    addresses,
    why_not_accepted,
    why_refused,
)
from django_grpc.processes.prctl import Orphans
from django_grpc.processes.process import WorkerProcess
from django_grpc.processes.protocol import Plan
from django_grpc.processes.recycling import draw_max_calls, why_to_replace
from django_grpc.processes.signals import SignalQueue

logger = GuardedLogger("django_grpc.workers")

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_SIGNALS: Final = (*_STOP, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)

#: Seconds between two looks at the workers' figures.
_PERIOD: Final = 1.0
#: Connections that are accepted before anything else is looked at.
_BATCH: Final = 64
#: Seconds until the next try, where a connection could not be accepted or given away.
_BACKOFF: Final = 0.05


class SupervisionError(Exception):
    """The workers can't be kept up.

    Attributes:
        status: The exit status for the process.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Supervisor:
    """Keeps as many workers serving as are wanted, and gives them the connections.

    It is a loop on the main thread. What happens (a connection, a message, a signal, a death) is
    told to `Fleet`; after each turn that decides what is to be done, which is done here.
    """

    def __init__(
        self,
        plan: Plan,
        listeners: Sequence[ListeningSocket],
        metrics: Sequence[ListeningSocket],
        *,
        has_bound: bool,
        write: Callable[[str], object],
        on_up: Callable[[Plan], object],
    ) -> None:
        """Prepare to run.

        Args:
            plan: The parent's part of the settings.
            listeners: Sockets to accept on; closed when the server stops.
            metrics: Sockets for the workers to serve metrics on; closed with the others.
            has_bound: Whether the address is that of the settings, and not systemd's.
            write: Prints a line for the operator; does not raise.
            on_up: Called once, when all workers serve.
        """
        self._listeners = listeners
        self._metrics = metrics
        self._write = write
        self._on_up = on_up
        room = Board.slots_for(plan.workers)
        self._board = Board(room)
        self._fleet = Fleet(plan, room)
        self._first_plan = plan
        self._has_bound = has_bound
        self._balancer = Balancer(self._board)
        self._selector = selectors.DefaultSelector()
        self._signals = SignalQueue(_SIGNALS)
        self._workers: dict[int, WorkerProcess] = {}
        self._orphans = Orphans()
        self._is_accepting = False
        self._accept_again_at = 0.0
        self._complained_at = -_PERIOD  # about connections that can't be accepted
        self._waiting: socket.socket | None = None  # a connection that no worker took yet
        self._ended: deque[WorkerProcess] = deque()  # they may have left some behind
        self._sampled_at = time.monotonic()
        self._has_dead = False

    def run(self, on_signals_taken: Callable[[], object] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT, and until the workers have drained.

        Args:
            on_signals_taken: Called when signals come here instead of to what handled them; what it
                raises ends the run.

        Raises:
            SupervisionError: They can't be kept up; those that were left have drained.
        """
        with relieved_of_lines(), self._signals:
            self._selector.register(self._signals, selectors.EVENT_READ, lambda: None)
            try:
                on_signals_taken()
                while not self._fleet.is_over:
                    now = time.monotonic()
                    self._carry_out(now)
                    self._listen_or_not(now)
                    for key, _ in self._selector.select(self._timeout(now)):
                        key.data()
                    self._look_around()
            finally:
                self._close()
        if self._fleet.failure is not None:
            raise SupervisionError(*self._fleet.failure)

    def _close(self) -> None:
        for worker in self._workers.values():  # only if this process fails
            worker.kill()
        for listening in self._listeners:
            listening.close()
        for listening in self._metrics:
            listening.close()
        self._selector.close()

    def _timeout(self, now: float) -> float:
        moments = [self._sampled_at + _PERIOD, now + _PERIOD]
        deadline = self._fleet.next_deadline(now)
        if deadline is not None:
            moments.append(deadline)
        are_listening = any(it.state is State.LISTENING for it in self._fleet.members)
        if self._has_waiting or self._accept_again_at > now or are_listening:
            moments.append(now + _BACKOFF)
        return max(0.0, min(moments) - now)

    def _look_around(self) -> None:
        now = time.monotonic()
        for number in self._signals.take():
            self._signalled(number, now)
        # Not sooner: other events of this turn may be of the same worker.
        if self._has_dead or now - self._sampled_at >= _PERIOD:
            self._has_dead = False
            self._reap(now)
        self._give_waiting()
        if now - self._sampled_at >= _PERIOD:
            self._sample(now)

    # Events

    def _signalled(self, number: signal.Signals, now: float) -> None:
        if number in _STOP:
            self._fleet.stop(number, now)
        elif number == signal.SIGCHLD:
            self._has_dead = True
        elif number == signal.SIGHUP:
            self._fleet.reload()
        elif number == signal.SIGTTIN:
            self._fleet.more()
        elif number == signal.SIGTTOU:
            self._fleet.fewer()

    def _receive(self, worker: WorkerProcess) -> None:
        try:
            message = worker.receive()
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            logger.log(
                logging.ERROR, f"Worker process {worker.pid} said something strange: {error}."
            )
            return
        now = time.monotonic()
        if message is None:
            self._selector.unregister(worker.control)
            self._fleet.hung_up(worker.key, now)
        elif message["event"] == protocol.READY:
            plan = self._fleet.plan.told(message.get("plan", {}))
            self._warn_of_address(plan)
            self._fleet.listens(worker.key, plan, now)
        elif message["event"] == protocol.LEAVING:
            self._fleet.wants_to_leave(worker.key, now)
        elif message["event"] == protocol.DRAINING:
            self._fleet.drains_itself(worker.key, now)

    def _warn_of_address(self, plan: Plan) -> None:
        """Say once of new code that wants another address that a reload can't give it."""
        for key in ("host", "port", "metrics") if self._has_bound else ():
            value = getattr(plan, key)
            if value not in (getattr(self._fleet.plan, key), getattr(self._first_plan, key)):
                logger.warning(
                    "GRPCSERVER[%r] is %r now, and a reload keeps the address: start the server "
                    "anew to have it there.",
                    key,
                    value,
                )

    def _reap(self, now: float) -> None:
        for worker in list(self._workers.values()):
            status = worker.poll()
            if status is not None:
                del self._workers[worker.key]
                self._forget(worker)
                self._ended.append(worker)
                self._fleet.ended(worker.key, status, now)
        self._orphans.reap({it.pid for it in self._workers.values()})

    def _forget(self, worker: WorkerProcess) -> None:
        for watched in (worker.control, worker.released):
            if watched in self._selector.get_map():
                self._selector.unregister(watched)
        worker.release()
        self._board.give_back(worker.slot)

    def _sample(self, now: float) -> None:
        elapsed = now - self._sampled_at
        for member in self._fleet.members:
            worker = self._workers[member.key]
            pulse = self._board.figures.pulse(worker.slot)
            if pulse:  # code of before may have none
                self._fleet.looked(member.key, pulse, elapsed)
            if member.state is State.SERVING:
                worker.sample_calls(self._board, elapsed)
                reason = why_to_replace(worker, self._fleet.plan, now)
                if reason is not None:
                    self._fleet.replace(member.key, reason)
        self._sampled_at = now

    # Actions

    def _carry_out(self, now: float) -> None:
        # What is done may be told to the fleet, which may decide more then.
        while actions := self._fleet.decide(now, self._figures()):
            for action in actions:
                self._perform(action, now)
        self._board.figures.set_workers(self._fleet.wanted)

    def _figures(self) -> dict[int, Figures]:
        return {
            it.key: Figures(self._board.figures.is_ready(it.slot), it.open)
            for it in self._workers.values()
        }

    def _perform(self, action: fleet.Action, now: float) -> None:
        match action:
            case fleet.Start(key, is_first):
                self._start(key, is_first, now)
            case fleet.Order(task, key):
                self._order(task, self._workers[key])
            case fleet.Log(level, text):
                logger.log(level, text)
            case fleet.Say(text):
                self._write(text)
            case fleet.Count(reason):
                self._board.figures.count_restart(reason)
            case fleet.Up():
                self._on_up(self._fleet.plan)
                systemd.notify_ready(f"Serving with {self._fleet.wanted} worker processes")
            case fleet.Reloading():
                systemd.notify_reloading()
            case fleet.Reloaded(text):
                systemd.notify_ready(text)
            case fleet.Stopping():
                systemd.notify_stopping()
            case fleet.CloseAddress():
                self._close_address()
            case fleet.EndAtOnce(number):
                self._end_at_once(number)

    def _start(self, key: int, is_first: bool, now: float) -> None:
        slot = self._board.take()
        try:
            worker = WorkerProcess(
                self._board,
                slot,
                key=key,
                metrics=[it.socket.fileno() for it in self._metrics],
                address=addresses(self._listeners),
                is_first=is_first,
            )
        except OSError as error:
            self._board.give_back(slot)
            self._fleet.cannot_start(key, why_refused(error), now)
            return
        try:
            read = selectors.EVENT_READ
            receive = functools.partial(self._receive, worker)
            self._selector.register(worker.control, read, receive)
            self._selector.register(worker.released, read, worker.count_released)
        except OSError as error:
            worker.kill()
            worker.wait()
            self._forget(worker)
            worker.forsake()
            self._fleet.cannot_start(key, why_refused(error), now)
            return
        self._workers[key] = worker
        self._fleet.started(key, worker.pid)

    def _order(self, task: Task, worker: WorkerProcess) -> None:
        match task:
            case Task.TAKE_IN:
                worker.take_in(draw_max_calls(self._fleet.plan))
            case Task.ANNOUNCE:
                self._board.figures.announce(worker.slot)
                worker.announce()
            case Task.DRAIN:
                self._board.figures.announce(worker.slot)
                worker.drain()
            case Task.TERMINATE:
                worker.terminate()
            case Task.ABORT:
                worker.abort()
            case Task.KILL:
                worker.kill()

    # Connections

    @property
    def _serving(self) -> list[WorkerProcess]:
        return [self._workers[it.key] for it in self._fleet.serving]

    @property
    def _is_full(self) -> bool:
        limit = self._fleet.plan.max_connections
        return limit is not None and sum(it.open for it in self._workers.values()) >= limit

    def _listen_or_not(self, now: float) -> None:
        """Accept only what somebody can take at once: the rest waits in the kernel."""
        may_accept = (
            not self._fleet.is_draining
            and not self._has_waiting
            and now >= self._accept_again_at
            and bool(self._fleet.serving)
            and not self._is_full
        )
        if may_accept == self._is_accepting:
            return
        self._is_accepting = may_accept
        for listening in self._listeners:
            if may_accept:
                self._selector.register(
                    listening.socket, selectors.EVENT_READ, lambda it=listening: self._accept(it)
                )
            else:
                self._selector.unregister(listening.socket)

    def _accept(
        self, listening: ListeningSocket, most: int = _BATCH, *, heeds_limit: bool = True
    ) -> None:
        try:
            for connection in accept(listening.socket, most):
                self._waiting = connection
                self._give_waiting()
                if self._has_waiting or (heeds_limit and self._is_full):
                    return
        except OSError as error:  # no more descriptors, mostly
            now = time.monotonic()
            self._accept_again_at = now + _BACKOFF
            if now - self._complained_at >= _PERIOD:
                self._complained_at = now
                logger.log(logging.WARNING, why_not_accepted(error))

    def _give_waiting(self) -> None:
        if self._fleet.is_draining:  # nobody takes them any more
            return self._close_waiting()
        while self._waiting is not None or self._take_back():
            if self._waiting is None or not self._balancer.give(self._waiting, self._serving):
                return
            self._waiting = None

    def _take_back(self) -> bool:
        """Have a connection wait that a worker had not taken in when it ended."""
        with contextlib.suppress(OSError):  # no more descriptors; they are tried again
            while self._ended and self._waiting is None:
                self._waiting = self._ended[0].take_back()
                if self._waiting is None:
                    self._ended.popleft()
        return self._waiting is not None

    @property
    def _has_waiting(self) -> bool:
        return self._waiting is not None or bool(self._ended)

    def _close_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        while self._ended:
            self._ended.popleft().forsake()

    # The end

    def _close_address(self) -> None:
        # Who has connected by now is still served; for the others the address is gone.
        self._give_waiting()
        for listening in self._listeners:
            if self._is_accepting:
                self._selector.unregister(listening.socket)
            if not self._has_waiting:
                # Past the limit too: they would have had their turn as others go, as they do now.
                self._accept(listening, BACKLOG, heeds_limit=False)
            listening.close()
        # Those of the metrics too, as a successor needs them: the workers let go of theirs.
        for listening in self._metrics:
            listening.close()
        self._is_accepting = False

    def _end_at_once(self, number: int) -> None:
        for worker in self._workers.values():
            worker.kill()
        write_last_words(b"Ended at once.\n")
        os._exit(128 + number)
