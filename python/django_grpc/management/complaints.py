"""What to say of what the system refuses."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from django.core.management.base import CommandError

from django_grpc import conf

_REASONS = {
    errno.EACCES: (
        "this user has no permission for it. Ports below 1024 need the capability "
        "CAP_NET_BIND_SERVICE, sockets a folder that the user may write into"
    ),
    errno.EADDRINUSE: "it is already in use. Choose another one, or end what listens there",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
}


def about_address(address: str, error: OSError | RuntimeError) -> str:
    """Say why calls can't be served on an address."""
    return (
        f"The server can't listen on {address}: {_reason(error, address)}. Change the address on "
        f"the command line, or {conf.SETTING}['host'] and {conf.SETTING}['port']."
    )


def _why_no_socket(path: str) -> str | None:
    """Say what is in the way of a socket's file, if it is that."""
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            return (
                "there is a file of this name that is no socket. Remove it, or choose another path"
            )
        if os.geteuid() not in (0, found.st_uid):
            return (
                f"there is a socket of another user (uid {found.st_uid}). Remove it if no server "
                "listens on it, or choose another path"
            )
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.exists(folder):
            return f"there is no folder {folder}. Create it, or choose another path"
    except (OSError, ValueError):
        pass
    return None


def about_metrics(address: str | None, error: OSError | RuntimeError) -> str:
    """Say why metrics can't be served on an address, and what to do.

    Args:
        address: None is the socket that systemd has given for them.
        error: What the system or the engine says.
    """
    if address is None:
        return (
            f"Metrics can't be served on systemd's socket of that name: {_reason(error, None)}. "
            "Its unit needs ListenStream=."
        )
    return (
        f"Metrics can't be served on {address}: {_reason(error, address)}. Change --metrics or "
        f"{conf.SETTING}['metrics']."
    )


def about_memory(what: str) -> str:
    """Say that memory is short, and what to do.

    Args:
        what: What could not be had; a clause.
    """
    return f"{what}: memory is short. Raise its limit (ulimit -v, a container's memory limit)."


@contextlib.contextmanager
def naming_share() -> Iterator[None]:
    """Explain that what worker processes share, memory most of all, can't be had.

    Raises:
        CommandError: In place of an OSError.
    """
    what = "What the worker processes share can't be made"
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise CommandError(about_memory(what)) from error
        raise CommandError(f"{what}: {error.strerror}.") from error


def _reason(error: OSError | RuntimeError, address: str | None) -> str:
    if address is not None and address.startswith("unix:"):
        if reason := _why_no_socket(address.partition(":")[2].removeprefix("//")):
            return reason
    # The engine raises grpcio's RuntimeError, caused by the system's own error.
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        said = cause.strerror or ""
        if said.startswith("Cannot resolve"):
            return f"the name can't be resolved ({said.rpartition(': ')[2]})"
        return _REASONS.get(cause.errno or 0, cause.strerror or str(cause))
    return str(cause or error)
