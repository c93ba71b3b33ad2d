"""What a worker process inherits, and what it and its parent tell each other.

Messages are JSON objects over a Unix socket that keeps them apart (``SOCK_SEQPACKET``). When either
side has ended the other one reads the end of the stream.
"""

import array
import dataclasses
import errno
import json
import os
import socket
from dataclasses import dataclass
from typing import Any, Self

from django_grpc import conf

_VARIABLE = "DJANGO_GRPC_WORKER"
_LARGEST = 65_536
_MOST_DESCRIPTORS = 250  # of one message; unix(7), SCM_RIGHTS

# Python's own variable, and the value by which we know that it is ours to take away.
_FAULTHANDLER = "PYTHONFAULTHANDLER"
_OURS = "django_grpc"

# What the parent says.
ANNOUNCE = "announce"  # be NOT_SERVING to health checks; calls are served as ever
DRAIN = "drain"

# What a worker says.
READY = "ready"
LEAVING = "leaving"  # it was told to end by others, and serves until the parent says so
DRAINING = "draining"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inheritance:
    """What a worker process gets from its parent: an environment variable and some descriptors.

    One of these it is started with, the others come by that: what its settings start, before there
    is anybody to take them, gets none of those.

    Attributes:
        control: The descriptor of the socket for messages.
        intake: That of the socket on which connections come.
        released: The eventfd that is raised for each connection that has gone.
        board: The file of the shared memory.
        slot: The worker's place in it.
        metrics: The sockets that listen for metrics.
        address: Where the parent listens.
        is_first: Whether it is the first with this code: it runs the checks for all.
    """

    control: int
    intake: int
    released: int
    board: int
    slot: int
    metrics: list[int]
    address: str
    is_first: bool

    def send(self, control: socket.socket) -> None:
        """Send the descriptors, as the first that the worker hears.

        Raises:
            OSError: It has ended.
        """
        descriptors = [self.intake, self.released, self.board, *self.metrics]
        socket.send_fds(control, [b"\0"], descriptors, socket.MSG_NOSIGNAL)

    def variables(self) -> dict[str, str]:
        """Return the environment variables to add."""
        variables = {_VARIABLE: json.dumps(dataclasses.asdict(self))}
        if _FAULTHANDLER not in os.environ:
            # From its first line on it writes down where it is when the parent aborts it.
            variables[_FAULTHANDLER] = _OURS
        return variables

    @classmethod
    def take(cls) -> Self | None:
        """Take what this process inherits; None: it is no worker.

        It is taken once, so that no process that this one starts takes itself for a worker.

        Raises:
            OSError: The parent has ended, or the system gives this process too few descriptors.
        """
        text = os.environ.pop(_VARIABLE, None)
        if text is None:
            return None
        if os.environ.get(_FAULTHANDLER) == _OURS:
            del os.environ[_FAULTHANDLER]
        inheritance = cls(**_known(cls, json.loads(text)))
        os.set_inheritable(inheritance.control, False)
        control = socket.socket(fileno=inheritance.control)
        try:
            control.settimeout(None)  # the settings may have changed the default
            descriptors = _receive_descriptors(control)
        finally:
            control.detach()
        if len(descriptors) != 3 + len(inheritance.metrics):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        intake, released, board, *metrics = descriptors
        return dataclasses.replace(
            inheritance, intake=intake, released=released, board=board, metrics=metrics
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the parent has to know of the settings; a worker reads them freshly and tells it.

    The attributes are those of `conf.ServerConfig`.
    """

    host: str
    port: int
    metrics: str | None
    workers: int
    max_workers: int
    grace: float
    drain_delay: float
    max_connections: int | None
    worker_max_calls: int | None
    worker_max_calls_jitter: int | None
    worker_max_age: float | None
    worker_max_memory: int | None
    worker_timeout: float | None
    worker_start_timeout: float | None

    @classmethod
    def of(cls, config: conf.ServerConfig) -> Self:
        """Take the parent's part of the settings."""
        plan = cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})
        return dataclasses.replace(plan, workers=config.worker_count)

    def told(self, plan: dict[str, Any]) -> Self:
        """Return it with what a worker has said, which may run another version of this package."""
        return dataclasses.replace(self, **_known(type(self), plan))


def _receive_descriptors(control: socket.socket) -> list[int]:
    """Receive descriptors that no child gets: `socket.recv_fds` does not ask for that."""
    found = array.array("i")
    room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * found.itemsize)
    _, ancillary, _, _ = control.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, data in ancillary:
        found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _known(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def send(control: socket.socket, event: str, **details: Any) -> None:
    """Send a message.

    Raises:
        OSError: The other side has ended.
    """
    control.send(json.dumps({"event": event, **details}).encode())


def receive(control: socket.socket) -> dict[str, Any] | None:
    """Receive a message; None: the other side has ended.

    Raises:
        BlockingIOError: The socket does not block, and there is none.
        ValueError: It is none: something else has written into the socket.
    """
    try:
        text = control.recv(_LARGEST)
    except ConnectionError:
        return None
    if not text:
        return None
    message = json.loads(text)
    if not isinstance(message, dict) or "event" not in message:
        raise ValueError(f"{message!r} is no message")
    return message
