"""A worker process, as its parent sees it."""

import contextlib
import enum
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from django_grpc.workers import messages, systemd
from django_grpc.workers.board import Board
from django_grpc.workers.load import Load
from django_grpc.workers.messages import Inheritance

_PAGES_PER_MIB = 1024 * 1024 // os.sysconf("SC_PAGE_SIZE")


class State(enum.Enum):
    """What a worker is at."""

    STARTING = enum.auto()
    SERVING = enum.auto()
    DRAINING = enum.auto()


class WorkerProcess:
    """A worker process and the parent's ends of what they share.

    Attributes:
        state: What it is at.
        generation: Which of the parent's loads of the code it runs.
        slot: Its place in the shared memory.
        control: The socket for messages, which does not block.
        released: The eventfd that the worker raises when a connection has gone.
        open: Connections that it was given and has not released.
        load: What is known of the calls on them.
        replaced_for: Why it is to be replaced; None: it is not.
        started_at: When it was started, by `time.monotonic`.
        listens_at: When it said that it can take connections; None: it has not.
        ready_at: When it was first given any.
        kill_at: When it is killed, if it has not ended; None: never.
    """

    def __init__(
        self,
        board: Board,
        slot: int,
        *,
        generation: int,
        metrics: list[int],
        address: str,
        is_first: bool,
    ) -> None:
        """Start the process: this one's command line, once more.

        Raises:
            OSError: The system does not let it.
        """
        self.state = State.STARTING
        self.generation = generation
        self.slot = slot
        self.open = 0
        self.load = Load()
        self.replaced_for: str | None = None
        self.calls_before = self._calls_seen = board.calls_ended(slot)
        self.high_memory_samples = 0
        self.last_given = 0
        self.max_calls: int | None = None
        self.started_at = time.monotonic()
        self.listens_at: float | None = None
        self.ready_at = 0.0
        self.kill_at: float | None = None
        with contextlib.ExitStack() as on_error:
            self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._intake, intake = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.released = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            on_error.callback(self._close)
            inheritance = Inheritance(
                control=control.fileno(),
                intake=intake.fileno(),
                released=self.released,
                board=board.descriptor,
                slot=slot,
                metrics=metrics,
                address=address,
                is_first=is_first,
            )
            with control, intake:
                self._process = subprocess.Popen(  # noqa: S603 - our own command line
                    [sys.executable, *sys.orig_argv[1:]],
                    env={**systemd.environment_for_workers(), **inheritance.variables()},
                    pass_fds=inheritance.descriptors(),
                    stdin=subprocess.DEVNULL,
                    # What a terminal sends for ^C is the parent's: workers hear of it from there.
                    process_group=0,
                )
            on_error.pop_all()
        self.control.setblocking(False)
        self._intake.setblocking(False)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def take_in(self, max_calls: int | None) -> None:
        """Note that it is given connections from now on.

        Args:
            max_calls: Calls after which it is to be replaced.
        """
        self.state = State.SERVING
        self.ready_at = time.monotonic()
        self.max_calls = max_calls

    # Connections

    def give(self, connection: socket.socket) -> None:
        """Give it a connection, which the caller closes then.

        Raises:
            BlockingIOError: Too many of those it was given wait to be taken in.
            OSError: It has ended.
        """
        socket.send_fds(self._intake, [b"\0"], [connection.fileno()], socket.MSG_NOSIGNAL)
        self.open += 1
        self.load.opened()

    def count_released(self) -> None:
        """Note which connections have gone."""
        with contextlib.suppress(BlockingIOError):
            count = os.eventfd_read(self.released)
            self.open -= count
            self.load.closed(count)

    # Messages

    def receive(self) -> dict[str, Any] | None:
        """Receive a message; None: the worker has ended or is about to.

        Raises:
            BlockingIOError: There is none.
        """
        return messages.receive(self.control)

    def announce(self) -> None:
        """Have it say NOT_SERVING to health checks."""
        with contextlib.suppress(OSError):
            messages.send(self.control, messages.ANNOUNCE)

    def drain(self, seconds: float) -> None:
        """Have it end its calls, and itself.

        It still takes in what it has been given, and sends that away.

        Args:
            seconds: After these it is killed.
        """
        if self.state is State.DRAINING:
            return
        is_up = self.listens_at is not None
        self.state = State.DRAINING
        self.kill_at = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            self._intake.shutdown(socket.SHUT_WR)
            messages.send(self.control, messages.DRAIN)
        if not is_up:
            self._process.terminate()  # it has no calls, and does not listen yet

    # Its life

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None: it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def release(self) -> None:
        """Let go of what the parent keeps for a process that has ended."""
        self._close()
        self.open = 0

    def _close(self) -> None:
        self.control.close()
        self._intake.close()
        os.close(self.released)

    # Figures

    def sample_calls(self, board: Board, seconds: float) -> None:
        """Look how many calls it has answered since the last time, so many seconds ago."""
        calls = board.calls_ended(self.slot)
        self.load.measured((calls - self._calls_seen) / seconds, self.open)
        self._calls_seen = calls

    @property
    def calls(self) -> int:
        """Calls that it has answered, as of the last sample."""
        return self._calls_seen - self.calls_before

    def memory(self) -> float:
        """Return its resident memory in MiB; 0 when it has just ended."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) / _PAGES_PER_MIB
        except (OSError, IndexError, ValueError):
            return 0.0

    def describe_end(self, status: int) -> str:
        """Say how it ended, as the end of a sentence that begins with the worker."""
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
