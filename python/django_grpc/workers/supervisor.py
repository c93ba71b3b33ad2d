"""The parent of the worker processes."""

import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from django_grpc.workers import messages, systemd
from django_grpc.workers.balance import Balancer, accept
from django_grpc.workers.board import Board
from django_grpc.workers.crashes import EARLY, LIMIT, CrashLoop
from django_grpc.workers.listeners import (
    BACKLOG,
    ListeningSocket,
    addresses,
    why_not_accepted,
)
from django_grpc.workers.messages import Plan
from django_grpc.workers.process import State, WorkerProcess
from django_grpc.workers.recycling import draw_max_calls, why_to_replace
from django_grpc.workers.signals import SignalQueue

logger = logging.getLogger("django_grpc.workers")

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_SIGNALS: Final = (*_STOP, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)

#: Seconds between two looks at the workers' figures.
_PERIOD: Final = 1.0
#: Seconds that a worker gets beyond its grace: for what comes after the drain.
_MARGIN: Final = 5.0
#: Seconds that a worker which listens gets for its health checks to pass, before it is taken in all
#: the same: what they find may be as wrong with the others.
_WARM_UP: Final = 10.0
#: Connections that are accepted before anything else is looked at.
_BATCH: Final = 64
#: Seconds until the next try, where a connection could not be accepted or given away.
_BACKOFF: Final = 0.05

_RELOAD: Final = "reload"


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

    It is a loop on the main thread. What happens (a connection, a message, a signal, a death)
    changes a worker's state; after each turn `_reconcile` compares what there is with what there
    ought to be, and starts or drains one. Recycling, reloading and a changed number of workers are
    all the same to it: workers that are to be replaced, and more or fewer than wanted.
    """

    def __init__(
        self,
        plan: Plan,
        listeners: Sequence[ListeningSocket],
        metrics: Sequence[ListeningSocket],
        *,
        write: Callable[[str], object],
        on_up: Callable[[Plan], object],
    ) -> None:
        """Prepare to run.

        Args:
            plan: The parent's part of the settings.
            listeners: Sockets to accept on; closed when the server stops.
            metrics: Sockets for the workers to serve metrics on; closed with the others.
            write: Prints a line for the operator.
            on_up: Called once, when all workers serve.
        """
        self._plan = plan
        self._wanted = plan.workers
        self._listeners = listeners
        self._metrics = metrics
        self._write = write
        self._on_up = on_up
        self._board = Board(Board.slots_for(plan.workers))
        self._board.set_workers(self._wanted)
        self._balancer = Balancer(self._board)
        self._selector = selectors.DefaultSelector()
        self._signals = SignalQueue(_SIGNALS)
        self._workers: list[WorkerProcess] = []
        self._crashes = CrashLoop()
        # Workers started since the same SIGHUP are one generation; the first that becomes ready
        # proves that its code can serve.
        self._generation = 1
        self._proved_generation = 0
        self._has_served = False
        self._is_up = False
        self._is_reloading = False
        self._is_accepting = False
        self._has_dead = False
        self._accept_again_at = 0.0
        self._complained_at = -_PERIOD  # about connections that can't be accepted
        self._waiting: socket.socket | None = None  # a connection that no worker took yet
        self._sampled_at = time.monotonic()
        self._stop_reason: str | None = None
        self._drain_at: float | None = None
        self._is_draining = False
        self._failure: SupervisionError | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, and until the workers have drained.

        Raises:
            SupervisionError: They can't be kept up; those that were left have drained.
        """
        with self._signals:
            self._selector.register(self._signals, selectors.EVENT_READ, self._take_signals)
            try:
                while not (self._is_draining and not self._workers):
                    self._reconcile(time.monotonic())
                    self._listen_or_not(time.monotonic())
                    for key, _ in self._selector.select(self._timeout(time.monotonic())):
                        key.data()
                    self._look_at_clock(time.monotonic())
            finally:
                self._close()
        if self._failure is not None:
            raise self._failure

    def _close(self) -> None:
        for worker in self._workers:  # only if this process fails
            worker.kill()
        for listening in self._listeners:
            listening.close()
        for listening in self._metrics:
            listening.close()
        self._selector.close()

    # Time

    def _timeout(self, now: float) -> float:
        moments = [self._sampled_at + _PERIOD, now + _PERIOD]
        if self._drain_at is not None and not self._is_draining:
            moments.append(self._drain_at)
        if self._crashes.retry_at > now:
            moments.append(self._crashes.retry_at)
        if self._waiting is not None or self._accept_again_at > now or self._listening:
            moments.append(now + _BACKOFF)
        moments += [it.kill_at for it in self._workers if it.kill_at is not None]
        return max(0.0, min(moments) - now)

    def _look_at_clock(self, now: float) -> None:
        if self._has_dead:  # not sooner: other events of this turn may be of the same worker
            self._has_dead = False
            self._reap()
        self._give_waiting()
        if now - self._sampled_at >= _PERIOD:
            self._sample(now)
        if self._drain_at is not None and now >= self._drain_at:
            self._drain_all()
        for worker in self._workers:
            if worker.kill_at is not None and now >= worker.kill_at:
                worker.kill_at = None
                logger.warning("Worker process %d did not end in time and is killed.", worker.pid)
                worker.kill()

    def _sample(self, now: float) -> None:
        for worker in self._serving:
            worker.sample_calls(self._board, now - self._sampled_at)
            self._crashes.serves(worker.started_at, worker.ready_at, now)
            worker.replaced_for = worker.replaced_for or why_to_replace(worker, self._plan, now)
        self._sampled_at = now

    # Workers

    def _in_state(self, state: State) -> list[WorkerProcess]:
        return [it for it in self._workers if it.state is state]

    @property
    def _serving(self) -> list[WorkerProcess]:
        return self._in_state(State.SERVING)

    def _reconcile(self, now: float) -> None:
        if self._stop_reason is not None:
            return
        self._take_in(now)
        for worker in self._surplus(self._serving):
            self._replace(worker)
        serving, starting = self._serving, self._in_state(State.STARTING)
        self._report_progress()
        if now < self._crashes.retry_at:
            return
        missing = self._wanted - len(serving) - len(starting)
        if missing <= 0 and not starting and self._due(serving):
            missing = 1  # in advance of the one that it replaces
        if self._proved_generation != self._generation:
            missing = min(missing, 1 - len(starting))  # one shows whether the code can serve
        for _ in range(missing):
            self._start(now)

    def _take_in(self, now: float) -> None:
        """Have those serve that listen and are well, unless no other is."""
        for worker in self._listening:
            is_well = self._board.is_ready(worker.slot)
            are_others = any(self._board.is_ready(it.slot) for it in self._serving)
            if is_well or not are_others or now - (worker.listens_at or now) >= _WARM_UP:
                worker.take_in(draw_max_calls(self._plan))

    @property
    def _listening(self) -> list[WorkerProcess]:
        return [it for it in self._in_state(State.STARTING) if it.listens_at is not None]

    def _due(self, serving: list[WorkerProcess]) -> list[WorkerProcess]:
        """Find those to be replaced: for a reload any, else none before the last one has ended."""
        is_one_leaving = any(
            it.replaced_for not in (None, _RELOAD) for it in self._in_state(State.DRAINING)
        )
        return [
            it
            for it in serving
            if it.replaced_for == _RELOAD or (it.replaced_for and not is_one_leaving)
        ]

    def _surplus(self, serving: list[WorkerProcess]) -> list[WorkerProcess]:
        """Find those that may go, as there are enough others that serve."""
        count = len(serving) - self._wanted
        if count <= 0:
            return []
        return sorted(serving, key=lambda it: (it.replaced_for is None, it.open))[:count]

    def _replace(self, worker: WorkerProcess) -> None:
        if worker.replaced_for is not None:
            self._board.count_restart(worker.replaced_for)
            logger.info("Worker process %d is replaced: %s.", worker.pid, worker.replaced_for)
        worker.drain(self._plan.grace + _MARGIN)

    def _start(self, now: float) -> None:
        slot = self._board.take()
        if slot is None:  # so many drain; one of them will end
            return
        try:
            worker = WorkerProcess(
                self._board,
                slot,
                generation=self._generation,
                metrics=[it.socket.fileno() for it in self._metrics],
                address=addresses(self._listeners),
                is_first=self._generation != self._proved_generation,
            )
        except OSError as error:
            self._board.give_back(slot)
            logger.error("A worker process can't be started: %s.", error)
            self._failed_early(now, now)
            return
        self._workers.append(worker)
        read = selectors.EVENT_READ
        self._selector.register(worker.control, read, lambda: self._receive(worker))
        self._selector.register(worker.released, read, worker.count_released)

    def _receive(self, worker: WorkerProcess) -> None:
        try:
            message = worker.receive()
        except BlockingIOError:
            return
        if message is None:  # it has ended, or is about to: SIGCHLD tells
            self._selector.unregister(worker.control)
        elif message["event"] == messages.READY and worker.state is State.STARTING:
            self._has_served = True
            self._take_plan(worker, Plan(**message["plan"]))
            worker.listens_at = time.monotonic()
        elif message["event"] == messages.DRAINING and worker.state is State.SERVING:
            logger.info("Worker process %d drains: it was told to by another process.", worker.pid)
            worker.drain(self._plan.grace + _MARGIN)

    def _take_plan(self, worker: WorkerProcess, plan: Plan) -> None:
        if worker.generation != self._generation:
            return
        self._plan = plan
        if self._proved_generation != self._generation:
            self._proved_generation = self._generation
            self._set_wanted(plan.workers)

    def _set_wanted(self, count: int) -> None:
        self._wanted = count
        self._board.set_workers(count)

    def _report_progress(self) -> None:
        serving = self._serving
        if len(serving) < self._wanted:
            return
        if not self._is_up:
            self._is_up = True
            self._on_up(self._plan)
            systemd.notify_ready(f"Serving with {self._wanted} worker processes")
        is_left = any(
            it.replaced_for == _RELOAD and it.state is not State.DRAINING for it in self._workers
        )
        if self._is_reloading and not is_left:
            self._end_reload(f"All {len(serving)} worker processes have been restarted.")

    # Deaths

    def _reap(self) -> None:
        for worker in list(self._workers):
            status = worker.poll()
            if status is not None:
                self._workers.remove(worker)
                self._forget(worker)
                self._ended(worker, status)

    def _forget(self, worker: WorkerProcess) -> None:
        for watched in (worker.control, worker.released):
            if watched in self._selector.get_map():
                self._selector.unregister(watched)
        worker.release()
        self._board.give_back(worker.slot)

    def _ended(self, worker: WorkerProcess, status: int) -> None:
        if worker.state is State.DRAINING or self._stop_reason is not None:
            return
        now = time.monotonic()
        end = worker.describe_end(status)
        if worker.state is State.SERVING:
            self._board.count_restart("crash")
            logger.warning("Worker process %d %s; a new one takes its place.", worker.pid, end)
            if now - worker.ready_at < EARLY:
                self._failed_early(worker.started_at, now)
        elif not self._has_served:
            self._fail(
                f"The server can't start: its first worker process {end} before it could serve.",
                status if status > 0 else 1,
            )
        else:
            logger.error("Worker process %d %s before it could serve.", worker.pid, end)
            self._failed_early(worker.started_at, now)
            if self._is_reloading:
                self._abandon_reload()

    def _failed_early(self, started_at: float, now: float) -> None:
        self._crashes.failed(started_at, now)
        if self._crashes.is_hopeless and len(self._serving) < self._wanted:
            self._fail(
                f"The server ends: {LIMIT} times in a row a worker process ended within "
                f"{EARLY:g} s. What it said stands above.",
                1,
            )

    def _fail(self, message: str, status: int) -> None:
        self._failure = SupervisionError(message, status)
        self._stop("a failure")

    # Signals

    def _take_signals(self) -> None:
        for number in self._signals.take():
            if number in _STOP:
                if self._stop_reason is not None:
                    self._end_at_once(number)
                self._stop(number.name)
            elif number == signal.SIGCHLD:
                self._has_dead = True
            elif self._stop_reason is not None:
                continue
            elif number == signal.SIGHUP:
                self._reload()
            elif number == signal.SIGTTIN:
                self._set_wanted(self._wanted + 1)
                self._write(f"Received SIGTTIN. There will be {self._wanted} worker processes.")
            elif number == signal.SIGTTOU:
                self._set_wanted(max(1, self._wanted - 1))
                self._write(f"Received SIGTTOU. There will be {self._wanted} worker processes.")

    def _reload(self) -> None:
        self._write("Received SIGHUP. The worker processes are restarted one by one.")
        systemd.notify_reloading()
        self._is_reloading = True
        self._generation += 1
        for worker in self._workers:
            worker.replaced_for = _RELOAD

    def _abandon_reload(self) -> None:
        for worker in self._workers:
            if worker.replaced_for == _RELOAD:
                worker.replaced_for = None
        self._end_reload(
            "The new code can't serve, see above: the worker processes of before go on.",
            logging.ERROR,
        )

    def _end_reload(self, text: str, level: int | None = None) -> None:
        self._is_reloading = False
        if level is None:
            self._write(text)
        else:
            logger.log(level, text)
        systemd.notify_ready(text)

    # Connections

    def _listen_or_not(self, now: float) -> None:
        """Accept only what somebody can take at once: the rest waits in the kernel."""
        limit = self._plan.max_connections
        may_accept = (
            not self._is_draining
            and self._waiting is None
            and now >= self._accept_again_at
            and bool(self._serving)
            and (limit is None or sum(it.open for it in self._workers) < limit)
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

    def _accept(self, listening: ListeningSocket, most: int = _BATCH) -> None:
        try:
            for connection in accept(listening.socket, most):
                self._waiting = connection
                self._give_waiting()
                limit = self._plan.max_connections
                is_full = limit is not None and sum(it.open for it in self._workers) >= limit
                if is_full or self._waiting is not None:
                    return
        except OSError as error:  # no more descriptors, mostly
            now = time.monotonic()
            self._accept_again_at = now + _BACKOFF
            if now - self._complained_at >= _PERIOD:
                self._complained_at = now
                logger.warning("%s", why_not_accepted(error))

    def _give_waiting(self) -> None:
        if self._waiting is not None and self._balancer.give(self._waiting, self._workers):
            self._waiting = None

    # The end

    def _stop(self, reason: str) -> None:
        self._stop_reason = reason
        delay = 0.0 if self._failure is not None else self._plan.drain_delay
        self._drain_at = time.monotonic() + delay
        systemd.notify_stopping()
        if self._failure is None:
            self._write(
                f"Received {reason}. Starting graceful shutdown, "
                f"calls in flight have {self._plan.grace:g} s to end..."
            )
        for worker in self._workers:
            if worker.state is State.SERVING:
                worker.announce()
            elif worker.state is State.STARTING:
                worker.drain(_MARGIN)

    def _drain_all(self) -> None:
        if self._is_draining:
            return
        # Who has connected by now is still served; for the others the address is gone.
        for listening in self._listeners:
            if self._serving and self._is_accepting:
                self._accept(listening, BACKLOG)
        self._is_draining = True
        self._listen_or_not(time.monotonic())
        # Those of the metrics too, as a successor needs them: the workers let go of theirs.
        for listening in (*self._listeners, *self._metrics):
            listening.close()
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        for worker in self._workers:
            worker.drain(self._plan.grace + _MARGIN)

    def _end_at_once(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.kill()
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"Ended at once.\n")
        os._exit(128 + number)
