"""Turning the setting's ``health`` into the health of a server."""

from typing import Any

from django_grpc import conf, health
from django_grpc.health.monitor import ReadinessMonitor


def enable(server: Any, config: conf.Health | None, *, with_checks: bool = True) -> None:
    """Have a server answer ``grpc.health.v1.Health``, and run the readiness checks.

    Call it when the servicers have been added, and before `django_grpc.building.enable_reflection`.

    Args:
        server: A server of `django_grpc.engine` that hasn't started.
        config: None leaves the service out.
        with_checks: False for a server that is ready at once, as those of tests are.

    Raises:
        ImproperlyConfigured: A check can't be imported.
    """
    if config is None:
        return
    monitor = None
    if with_checks and config.checks:
        monitor = ReadinessMonitor(
            {path: conf.import_configured("health.checks", path) for path in config.checks},
            interval=config.interval,
            timeout=config.timeout,
        )
    server.enable_health(max_queue_wait=config.max_queue_wait, monitor=monitor)
    health.attach(server)
