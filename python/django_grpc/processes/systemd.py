"""What systemd offers a service: sockets that it has bound, and a place to say how it fares.

The protocols are those of sd_listen_fds(3) and sd_notify(3); they need no library.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from django.core.exceptions import ImproperlyConfigured

from django_grpc.logs import GuardedLogger

logger = GuardedLogger("django_grpc.workers")

_FIRST_DESCRIPTOR = 3
# More than the kernel lets a process have.
_MOST_DIGITS = 9
_NOTIFY_SOCKET = "NOTIFY_SOCKET"
# Seconds that a service manager may take to hear something.
_PATIENCE = 1.0
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

#: The ``FileDescriptorName=`` of the socket for metrics.
METRICS = "metrics"


class Sockets(NamedTuple):
    """The descriptors of sockets that systemd has bound for this process.

    Attributes:
        calls: Those for gRPC: all that are not named ``metrics``.
        metrics: Those named so.
    """

    calls: tuple[int, ...] = ()
    metrics: tuple[int, ...] = ()


def take_sockets() -> Sockets:
    """Take the sockets of socket activation; none when this process was not started so.

    They are taken once: the environment does not name them any more, so no child takes them.

    Raises:
        ImproperlyConfigured: One of them is not there.
    """
    pid, count, names = (os.environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return Sockets()
    if len(count) > _MOST_DIGITS:
        raise ImproperlyConfigured("LISTEN_FDS is more than a process can have.")
    descriptors = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count))
    named = dict(zip(descriptors, names.split(":"), strict=False))
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise ImproperlyConfigured(
                f"LISTEN_FDS={count} names the file descriptor {descriptor}, which is not open: "
                "have systemd start the server itself, not a program that closes what it is given."
            ) from error
    return Sockets(
        calls=tuple(it for it in descriptors if named.get(it) != METRICS),
        metrics=tuple(it for it in descriptors if named.get(it) == METRICS),
    )


def notify_ready(status: str) -> None:
    """Tell that the service is up, or that it has been reloaded."""
    _notify("READY=1", f"STATUS={status}")


def notify_reloading() -> None:
    """Tell that the service takes in new code and settings, until `notify_ready`."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _notify("RELOADING=1", f"MONOTONIC_USEC={microseconds}", "STATUS=Reloading")


def notify_stopping() -> None:
    """Tell that the service ends."""
    _notify("STOPPING=1", "STATUS=Draining")


def _notify(*lines: str) -> None:
    path = os.environ.get(_NOTIFY_SOCKET)
    if not path:
        return
    if path.startswith("@"):
        path = f"\0{path[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifying:
            notifying.settimeout(_PATIENCE)
            notifying.sendto("\n".join(lines).encode(), path)
    except OSError as error:
        logger.warning("The service manager can't be told %s: %s", lines[0], error)


def for_workers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what systemd meant for this process only."""
    withheld = (*_VARIABLES, _NOTIFY_SOCKET, "WATCHDOG_PID", "WATCHDOG_USEC")
    return {name: value for name, value in environment.items() if name not in withheld}
