"""Sockets that listen, bound by the engine for the parent of worker processes."""

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterable

from django_grpc import _engine
from django_grpc.addresses import is_unix
from django_grpc.lifecycle import threads

#: Connections that the kernel keeps until they are accepted; the engine's own figure.
BACKLOG = 1024


class ListeningSocket:
    """A socket that listens, and does not block.

    Attributes:
        socket: The socket itself.
        address: Where it listens, as gRPC writes it, with the port that was bound.
    """

    def __init__(self, bound: socket.socket, address: str, path: str | None = None) -> None:
        """Take a socket that listens.

        Args:
            bound: The socket.
            address: Where it listens.
            path: The file that goes with it, when it is ours to remove.
        """
        bound.setblocking(False)
        self.socket = bound
        self.address = address
        self._path = path
        self._file = None if path is None else _identity(path)

    def close(self) -> None:
        """Stop listening, and remove the file, if it is still the one that was made here.

        A successor may listen there already. The file goes first: while the socket is open no other
        file gets its number. One that another process puts there between the look and the removal
        is lost: unlink(2) takes no more than a path.
        """
        if self._path is not None and self._file == _identity(self._path):
            _remove(self._path)
        self._path = None
        self.socket.close()


def bind(address: str, *, reuse_port: bool = False) -> list[ListeningSocket]:
    """Listen on an address, as the engine does: without waiting for a peer.

    Args:
        address: ``host:port``, ``unix:PATH`` or ``unix-abstract:NAME``. A wildcard host is every
            address, IPv4 and IPv6.
        reuse_port: Whether others may listen on it, too.

    Returns:
        At least one socket. A host that has several addresses, as ``localhost`` has for IPv4 and
        IPv6, gets one for each, all with one port; those of a family that the machine does not have
        are left out.

    Raises:
        OSError: It can't be bound.
    """
    try:
        descriptors = _engine.bind(address, reuse_port)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    bound = [socket.socket(fileno=it) for it in descriptors]
    if is_unix(address):
        scheme, _, name = address.partition(":")
        path = name.removeprefix("//") if scheme == "unix" else None
        return [ListeningSocket(bound[0], address, path)]
    host, _, _ = address.rpartition(":")
    return [ListeningSocket(it, f"{host}:{it.getsockname()[1]}") for it in bound]


def adopt(descriptor: int) -> ListeningSocket:
    """Take a socket that listens already; its file stays its owner's.

    Raises:
        OSError: It is no socket that listens.
    """
    bound = socket.socket(fileno=descriptor)
    if not bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        bound.detach()
        raise OSError(errno.EINVAL, f"descriptor {descriptor} is no socket that listens")
    bound.set_inheritable(False)
    return ListeningSocket(bound, _name(bound))


def addresses(listening: Iterable[ListeningSocket]) -> str:
    """Name the addresses for people; the sockets of one host have one between them."""
    return ", ".join(dict.fromkeys(it.address for it in listening))


def why_not_accepted(error: OSError) -> str:
    """Say, for the operator, why connections wait to be accepted."""
    return f"Accepting connections pauses: {why_refused(error)}."


def why_refused(error: OSError) -> str:
    """Say, for the operator, why there is no connection, or no process."""
    if error.errno == errno.EAGAIN:
        return f"the system refuses it. {threads.MEND.rstrip('.')}"
    if error.errno != errno.EMFILE:
        reason = error.strerror or str(error)
        return reason if error.filename is None else f"{reason}: '{error.filename}'"
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"all {limit} file descriptors that this process may open (RLIMIT_NOFILE) are in use. "
        "Raise the limit with 'ulimit -n', or LimitNOFILE= in a systemd unit"
    )


def address_of(descriptor: int) -> str:
    """Return where a socket listens, as gRPC writes it."""
    bound = socket.socket(fileno=descriptor)
    try:
        return _name(bound)
    finally:
        bound.detach()


def _name(bound: socket.socket) -> str:
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        text = os.fsdecode(name)
        return f"unix-abstract:{text[1:]}" if text.startswith("\0") else f"unix:{text}"
    host = f"[{name[0]}]" if bound.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


def _identity(path: str) -> tuple[int, int] | None:
    """Which file a path leads to; None: there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
