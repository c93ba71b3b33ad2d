"""Sockets that listen, bound without the engine."""

import contextlib
import errno
import os
import socket
import stat

from django_grpc.addresses import is_unix

#: Connections that the kernel keeps until they are accepted; the engine's own figure.
BACKLOG = 1024

_WILDCARDS = ("", "*", "::", "[::]", "0.0.0.0")  # noqa: S104 - what to recognise


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

    def close(self) -> None:
        """Stop listening, and remove the file."""
        self.socket.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def bind(address: str, *, reuse_port: bool = False) -> ListeningSocket:
    """Listen on an address.

    Args:
        address: ``host:port``, ``unix:PATH`` or ``unix-abstract:NAME``. A wildcard host is every
            address, IPv4 and IPv6.
        reuse_port: Whether others may listen on it, too.

    Raises:
        OSError: It can't be bound.
    """
    if is_unix(address):
        return _bind_unix(address)
    host, _, port = address.rpartition(":")
    bound = _bind_tcp(host, int(port), reuse_port)
    return ListeningSocket(bound, f"{host}:{bound.getsockname()[1]}")


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


def _bind_tcp(host: str, port: int, reuse_port: bool) -> socket.socket:
    host = host.removeprefix("[").removesuffix("]")
    # One dual-stack socket serves both families; a machine without IPv6 gets the other.
    candidates = [host]
    if host in _WILDCARDS and host != "0.0.0.0":  # noqa: S104
        candidates = ["::", "0.0.0.0"]  # noqa: S104
    missing: OSError | None = None
    for candidate in candidates:
        try:
            found = socket.getaddrinfo(
                candidate, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except socket.gaierror as error:
            raise OSError(
                errno.EADDRNOTAVAIL, f"cannot resolve '{candidate}': {error.strerror}"
            ) from error
        for family, _, _, _, name in found:
            try:
                return _bind_family(family, name, reuse_port)
            except OSError as error:
                # A taken port is the answer; only a family that is missing is worth another try.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                missing = error
    raise missing or OSError(errno.EADDRNOTAVAIL, f"no address for '{host}'")


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
        if _is_stale(name):
            os.unlink(name)
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


def _is_stale(path: str) -> bool:
    """Whether a path is a socket that nobody listens on: left over, so that it may be replaced."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
