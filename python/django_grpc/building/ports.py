"""Where a server listens."""

from typing import Any

from django_grpc import conf, engine
from django_grpc.addresses import format_address
from django_grpc.building.credentials import load_credentials


def bind(
    server: Any,
    config: conf.ServerConfig,
    port: int | str,
    *,
    host: str | None = None,
    credentials: engine.ServerCredentials | None = None,
) -> int:
    """Have a server listen, with TLS if the settings have credentials.

    Args:
        server: A server that hasn't started.
        config: For the credentials and the host.
        port: TCP port; 0 lets the system choose.
        host: As for `create_server`.
        credentials: Those of the settings, when they have been loaded already.

    Returns:
        The port that was bound; for a Unix socket whatever the engine returns.

    Raises:
        ImproperlyConfigured: A file of the credentials can't be read.
        OSError, RuntimeError: The address can't be bound.
    """
    address = format_address(config.host if host is None else host, port)
    bound: int
    if config.credentials is None:
        bound = server.add_insecure_port(address)
    else:
        bound = server.add_secure_port(address, credentials or load_credentials(config.credentials))
    return bound


def bind_metrics(server: Any, config: conf.ServerConfig) -> None:
    """Have a server serve its figures over HTTP, if the settings say where.

    Args:
        server: A server that hasn't started.
        config: For the address.

    Raises:
        OSError, RuntimeError: The address can't be bound.
    """
    if config.metrics is not None:
        server.add_metrics_port(config.metrics)
