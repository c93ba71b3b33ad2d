"""A worker process, as its parent sees it."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import termios
import time
from typing import Any

from django_grpc.lifecycle.output import replace_lost_descriptors
from django_grpc.processes import origin, protocol
from django_grpc.processes.board import Board
from django_grpc.processes.load import Load
from django_grpc.processes.protocol import Inheritance

#: Seconds that a connection may wait in a worker's socket before the worker counts as late.
_LATE = 0.1

_PAGES_PER_MIB = 1024 * 1024 // os.sysconf("SC_PAGE_SIZE")


class WorkerProcess:
    """A worker process and the parent's ends of what they share; what it is at is `Fleet`'s.

    Attributes:
        key: Its name in `Fleet`.
        slot: Its place in the shared memory.
        control: The socket for messages, which does not block.
        released: The eventfd that the worker raises when a connection has gone.
        open: Connections that it was given and has not released.
        load: What is known of the calls on them.
        ready_at: When it was first given any, by `time.monotonic`.
        max_calls: Calls after which it is to be replaced; None: it is not.
    """

    def __init__(
        self,
        board: Board,
        slot: int,
        *,
        key: int,
        metrics: list[int],
        address: str,
        is_first: bool,
    ) -> None:
        """Start the process: this one's command line, once more.

        Raises:
            OSError: The system does not let it.
        """
        self.key = key
        self.slot = slot
        self.open = 0
        self.load = Load()
        self.calls_before = self._calls_seen = board.figures.calls_ended(slot)
        self.high_memory_samples = 0
        self.last_given = 0
        # Since when there have been connections in its socket, as far as anyone has looked.
        self._waits_since: float | None = None
        self.max_calls: int | None = None
        self.ready_at = 0.0
        with contextlib.ExitStack() as on_error:
            self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # Its end is kept too, or what a process that is killed has not taken in were lost.
            self._intake, self._taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.released = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            on_error.callback(self._taken.close)
            on_error.callback(self._close)
            inheritance = Inheritance(
                control=control.fileno(),
                intake=self._taken.fileno(),
                released=self.released,
                board=board.descriptor,
                slot=slot,
                metrics=metrics,
                address=address,
                is_first=is_first,
            )
            replace_lost_descriptors()
            with control:
                self._process = subprocess.Popen(  # noqa: S603 - our own command line
                    origin.worker_command(),
                    env={**origin.worker_environment(), **inheritance.variables()},
                    pass_fds=[inheritance.control],
                    cwd=origin.start_directory(),
                    stdin=subprocess.DEVNULL,
                    # What a terminal sends for ^C is the parent's: workers hear of it from there.
                    process_group=0,
                )
                try:
                    inheritance.send(self.control)
                except ConnectionError:
                    pass  # it has ended, which is seen elsewhere
                except OSError:
                    self._process.kill()
                    self._process.wait()
                    raise
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
        if self._waits_since is None:
            self._waits_since = time.monotonic()

    def take_back(self) -> socket.socket | None:
        """Take back one connection that it was given and had not taken in when it ended.

        To be called after `release`, until there is none: None.

        Raises:
            OSError: No more can be opened; it stays where it is.
        """
        # The kernel drops a descriptor for which there is no room.
        os.close(os.dup(self._taken.fileno()))
        self._taken.setblocking(False)  # of the process too, as the two have one description
        with contextlib.suppress(BlockingIOError):
            message, descriptors, _, _ = socket.recv_fds(self._taken, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if message and descriptors:
                return socket.socket(fileno=descriptors[0])
        self.forsake()
        return None

    def forsake(self) -> None:
        """Hang up on the connections that it had not taken in, if there still are any."""
        self._taken.close()

    def is_late(self) -> bool:
        """Whether it does not take in what it was given: it may have no descriptors for more."""
        if self._waits_since is None:
            return False
        # unix(7), SIOCOUTQ: what the other end has not read.
        unread = fcntl.ioctl(self._intake, termios.TIOCOUTQ, bytes(4))
        if not any(unread):
            self._waits_since = None
            return False
        return time.monotonic() - self._waits_since > _LATE

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
        return protocol.receive(self.control)

    def announce(self) -> None:
        """Have it say NOT_SERVING to health checks."""
        with contextlib.suppress(OSError):
            protocol.send(self.control, protocol.ANNOUNCE)

    def drain(self) -> None:
        """Have it end its calls, and itself.

        It still takes in what it has been given, and sends that away.
        """
        self._give_no_more()
        with contextlib.suppress(OSError):
            protocol.send(self.control, protocol.DRAIN)

    def _give_no_more(self) -> None:
        with contextlib.suppress(OSError):
            self._intake.shutdown(socket.SHUT_WR)

    # Its life

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None: it lives."""
        return self._process.poll()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()

    def terminate(self) -> None:
        """End it; it does not listen yet, or has just begun to."""
        self.drain()
        self._process.terminate()

    def abort(self) -> None:
        """Have it write its stacks to its standard error, by faulthandler, and end."""
        self._give_no_more()
        self._process.send_signal(signal.SIGABRT)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def release(self) -> None:
        """Let go of what the parent keeps for a process that has ended, but for `take_back`."""
        self._close()
        self.open = 0

    def _close(self) -> None:
        self.control.close()
        self._intake.close()
        os.close(self.released)

    # Figures

    def sample_calls(self, board: Board, seconds: float) -> None:
        """Look how many calls it has answered since the last time, so many seconds ago."""
        calls = board.figures.calls_ended(self.slot)
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
