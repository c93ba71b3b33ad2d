"""Whether this process serves: the statuses that ``grpc.health.v1.Health`` tells.

    from django_grpc import health

    health.set_status("shop.Search", health.NOT_SERVING)  # its index is being built
    ...
    health.set_status("shop.Search", health.SERVING)

Each service is SERVING while the server is ready and its own status is SERVING. What makes a server
ready is in `django_grpc.health.checks` and in docs/health.md.
"""

import contextlib
import enum
import threading
import weakref
from collections.abc import Iterator
from typing import Any

__all__ = ["NOT_SERVING", "SERVING", "UNKNOWN", "NotReady", "ServingStatus", "set_status"]


class ServingStatus(enum.IntEnum):
    """The status of a service; the numbers are those of ``grpc.health.v1``."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2


UNKNOWN = ServingStatus.UNKNOWN
SERVING = ServingStatus.SERVING
NOT_SERVING = ServingStatus.NOT_SERVING


class NotReady(Exception):  # noqa: N818 - it is an answer
    """Raised by a readiness check; its text says what is missing."""


_lock = threading.Lock()
_statuses: dict[str, ServingStatus] = {}
_servers: weakref.WeakSet[Any] = weakref.WeakSet()


def set_status(service: str, status: int) -> None:
    """Set the status of a service on every server of this process.

    It holds for servers that are made later too, so it may be called before there is any, from a
    servicer's hook for example. Callable from any thread; watching clients are told before it
    returns.

    Args:
        service: Full name of the service, ``package.Service``, or "" for the server as a whole. A
            name that no service has is known from then on.
        status: One of `ServingStatus`, or the same number of grpcio-health-checking.

    Raises:
        TypeError: The service is no `str`.
        ValueError: The status is none of these, or the name can't be written in UTF-8.
    """
    if not isinstance(service, str):
        raise TypeError(
            f"set_status() needs the full name of a service, as 'shop.Search', not {service!r}."
        )
    service.encode()  # names travel as UTF-8
    with _lock:
        _statuses[service] = ServingStatus(status)
        for server in _servers:
            server.health.set_status(service, status)


def attach(server: Any) -> None:
    """Have a server follow `set_status`.

    Args:
        server: What `django_grpc.engine.server` or `django_grpc.engine.aio.server` returns.
    """
    with _lock:
        _servers.add(server)
        for service, status in _statuses.items():
            server.health.set_status(service, status)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Forget, at the end, the statuses that are set within; for tests."""
    with _lock:
        before = dict(_statuses)
    try:
        yield
    finally:
        with _lock:
            _statuses.clear()
            _statuses.update(before)
