"""Sockets that listen, bound without the engine."""

import contextlib
import errno
import os
import resource
import socket
import stat
from collections.abc import Iterable

from django_grpc.addresses import is_unix
from django_grpc.management import threads

#: Connections that the kernel keeps until they are accepted; the engine's own figure.
BACKLOG = 1024

#: How often a port that was free for one of a host's addresses only is given back for another.
_MOST_TRIES = 16

_WILDCARDS = ("", "*", "::", "0.0.0.0")  # noqa: S104 - what to recognise


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
    if is_unix(address):
        return [_bind_unix(address)]
    host, _, port = address.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise OSError(
            errno.EINVAL, f"'{address}' needs brackets around its IPv6 address: [::1]:50051"
        )
    found = _bind_tcp(host, int(port), reuse_port)
    return [ListeningSocket(bound, f"{host}:{bound.getsockname()[1]}") for bound in found]


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


def _bind_tcp(host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host in _WILDCARDS:
        # One dual-stack socket serves both families; a machine without IPv6 gets the other.
        candidates = ("::", "0.0.0.0") if host != "0.0.0.0" else (host,)  # noqa: S104
        addresses = [it for candidate in candidates for it in _resolve(candidate, port)]
        return _bind_addresses(addresses, reuse_port, most=1)
    # RFC 6761 section 6.3: it is both, whatever the machine's list of hosts says.
    names = ("127.0.0.1", "::1") if host.lower() == "localhost" else (host,)
    addresses = [it for name in names for it in _resolve(name, port)]
    for _ in range(_MOST_TRIES - 1 if port == 0 else 0):
        try:
            return _bind_addresses(addresses, reuse_port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _bind_addresses(addresses, reuse_port)


def _resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, f"Cannot resolve '{host}': {error.strerror}") from error
    except ValueError as error:  # a label of it is empty or too long, or it has a NUL
        raise OSError(errno.EADDRNOTAVAIL, f"Cannot resolve '{host}': {error}") from error
    return [(family, name) for family, _, _, _, name in found]


def _bind_addresses(
    addresses: list[tuple[int, tuple[object, ...]]], reuse_port: bool, most: int | None = None
) -> list[socket.socket]:
    """Bind addresses, with the port that the first got where theirs is 0."""
    bound: list[socket.socket] = []
    missing: OSError | None = None
    for family, (host, port, *rest) in addresses:
        if bound:
            port = bound[0].getsockname()[1]
        try:
            bound.append(_bind_family(family, (host, port, *rest), reuse_port))
        except OSError as error:
            # A taken port is the answer; only an address that the machine lacks is left out.
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                for it in bound:
                    it.close()
                raise
            missing = error
        if len(bound) == most:
            break
    if not bound:
        raise missing or OSError(errno.EADDRNOTAVAIL, "the host has no address")
    return bound


def _bind_family(family: int, name: tuple[object, ...], reuse_port: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(name)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(address: str) -> ListeningSocket:
    scheme, _, name = address.partition(":")
    is_abstract = scheme == "unix-abstract"
    if not is_abstract:
        name = name.removeprefix("//")
    if not name:  # the system would make one up
        raise OSError(errno.EINVAL, f"'{address}' names no socket")
    if not is_abstract:
        _remove_stale(name)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(f"\0{name}" if is_abstract else name)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno is None:  # Python's own, for a path that does not fit
            raise OSError(errno.ENAMETOOLONG, "the socket's path is too long") from error
        raise
    return ListeningSocket(bound, address, None if is_abstract else name)


def _remove_stale(path: str) -> None:
    """Remove a socket's file that nobody listens on, as a crashed process leaves it.

    Of two processes that do so in the same instant one may lose its new file to the other.
    """
    found = _identity(path)
    if found is not None and _is_deaf(path) and found == _identity(path):
        _remove(path)


def _is_deaf(path: str) -> bool:
    """Whether a path is a socket on which nobody listens.

    It asks without waiting: a connection to one whose backlog is full would wait until somebody
    accepts.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


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
