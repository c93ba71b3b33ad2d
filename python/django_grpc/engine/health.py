"""The health of a server: what it says of itself through ``grpc.health.v1.Health``.

The service is answered in the engine, on its event loop: neither a worker nor the interpreter is
asked, and `maximum_concurrent_rpcs` and interceptors do not concern it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple, Protocol

from django_grpc.logs import GuardedLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django_grpc import _engine

logger = GuardedLogger("django_grpc.health")

SERVICE_NAME = "grpc.health.v1.Health"
METHODS = ("Check", "List", "Watch")

#: What the engine finds out by itself, so that nobody else has logged it.
_FOUND_BY_ENGINE = ("queue", "lease")


class Problem(NamedTuple):
    """Why a server is not ready.

    Attributes:
        cause: ``shutdown``, ``queue``, ``checks`` (one failed, or none has passed yet), ``lease``
            (they have not passed in time) or ``status`` (that of the service "" is not SERVING).
        text: For people.
    """

    cause: str
    text: str


class Monitor(Protocol):
    """What finds out in the background whether a server is ready."""

    def start(self, health: Health) -> None:
        """Begin; from now on call `Health.set_ready` and `Health.set_not_ready`."""

    def stop(self) -> None:
        """End, without waiting for it. May be called more than once, and without `start`."""

    def overdue(self) -> str | None:
        """Say what keeps it from an answer, for the log."""


class Health:
    """The health of one server, its attribute `health`. Methods may be called from any thread.

    A server is ready unless something speaks against it: it shuts down, `set_not_ready`, a lease
    that ran out, calls that wait in the queue for too long. Each service, and the server as a whole
    under the name "", is SERVING while the server is ready and its own status is SERVING.
    """

    def __init__(self, native: _engine.Server, known: Callable[[], Iterable[str]]) -> None:
        """Make the health of a server; `known` gives the paths of its methods."""
        self._native = native
        self._known = known
        self._is_enabled = False
        self._monitor: Monitor | None = None
        self._logged: Problem | None = None
        # The engine keeps what it calls, and the garbage collector can't look into it.
        reference = weakref.ref(self)

        def listener() -> None:
            if (health := reference()) is not None:
                health._log_change()

        native.set_health_listener(listener)

    def enable(
        self, *, max_queue_wait: float | None = None, monitor: Monitor | None = None
    ) -> None:
        """Answer ``grpc.health.v1.Health``, unless a servicer of that name is registered.

        Call it before the server starts. All services that are registered then are known, as
        SERVING.

        Args:
            max_queue_wait: Seconds that the oldest call may have waited for a worker, or for the
                asyncio loop, while the server is ready. None: no limit.
            monitor: Started and stopped with the server, which is not ready before it says so.
                None: the server is ready at once.
        """
        self._is_enabled = True
        if max_queue_wait is not None:
            self._native.observe_queue(max_queue_wait)
        if monitor is not None:
            self._monitor = monitor
            self._native.set_not_ready("the readiness checks have not passed yet")

    @property
    def is_served(self) -> bool:
        """Whether the engine answers the service: it is enabled, and nobody else does."""
        prefix = f"/{SERVICE_NAME}/"
        return self._is_enabled and not any(path.startswith(prefix) for path in self._known())

    def set_status(self, service: str, status: int) -> None:
        """Set the status of a service, known before or not, or of the server with "".

        Args:
            service: As its clients ask for it, ``package.Service``.
            status: UNKNOWN, SERVING or NOT_SERVING, as `django_grpc.health` and
                grpcio-health-checking number them: 0, 1, 2.

        Raises:
            ValueError: It is none of these.
        """
        if isinstance(status, bool):
            raise ValueError("A status is UNKNOWN, SERVING or NOT_SERVING, and no bool.")
        self._native.set_health(service, status)

    def set_ready(self, seconds: float | None = None) -> None:
        """Say that the server is ready, as far as whoever says so knows.

        Args:
            seconds: After which time it is not, unless this has been called again. None: never.
        """
        self._native.set_ready(seconds)

    def set_not_ready(self, reason: str) -> None:
        """Say that the server is not ready, until `set_ready`."""
        self._native.set_not_ready(reason)

    def announce_shutdown(self) -> None:
        """Be not ready from now on, and serve as ever, so that load balancers notice."""
        self._native.announce_shutdown()

    @property
    def problem(self) -> Problem | None:
        """Why the server is not ready; None when it is."""
        problem = self._native.health_problem()
        return None if problem is None else Problem(*problem)

    @property
    def is_ready(self) -> bool:
        """Whether the server as a whole is SERVING."""
        return self.problem is None

    def start(self) -> None:
        """Begin; called by the server, once its handlers are installed."""
        self.add_services()
        if self.is_served:
            self._native.enable_health()
        if self._monitor is not None:
            self._monitor.start(self)

    def add_services(self) -> None:
        """Make the services known that have been registered; called by the server."""
        services = {path.split("/")[1] for path in self._known()}
        self._native.add_health_services(sorted(services))

    def stop(self) -> None:
        """End the monitor; called by the server."""
        if self._monitor is not None:
            self._monitor.stop()

    def _log_change(self) -> None:
        # On the control thread, whose lines another one writes.
        problem = self.problem
        if problem is not None and problem.cause in _FOUND_BY_ENGINE:
            if problem == self._logged:
                return
            self._logged = problem
            reason = problem.text
            if problem.cause == "lease" and self._monitor is not None:
                reason = self._monitor.overdue() or reason
            logger.warning("The server is not ready: %s", reason)
        elif problem is None and self._logged is not None:
            self._logged = None
            logger.info("The server is ready again")
