"""A server, from `settings.GRPCSERVER` with all that it names."""

import asyncio
import dataclasses
import errno
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_grpc import access_log, conf, engine
from django_grpc.building.interceptors import load_instruments, load_interceptors
from django_grpc.building.ports import bind
from django_grpc.building.servicers import add_servicers, enable_reflection
from django_grpc.engine import aio, loops
from django_grpc.health import enabling


def create_server(
    max_workers: int | None,
    port: int | str,
    interceptors: Iterable[Any] | None = None,
    *,
    host: str | None = None,
) -> Any:
    """Make a server as `settings.GRPCSERVER` says, bound and ready for its `start()`.

    With ``'async': True`` it is to be called on a running event loop.

    Args:
        max_workers: Threads that run calls. None: the setting's ``max_workers``.
        port: TCP port; 0 lets the system choose, and then `bind` is the way to learn which.
        interceptors: More interceptors, or dotted paths of their classes, to run inside those of
            the setting.
        host: Address to listen on, ``unix:PATH`` without regard to the port. None: the setting's
            ``host``, by default every address.

    Returns:
        What `django_grpc.engine.server` returns, or `django_grpc.engine.aio.server`.

    Raises:
        ImproperlyConfigured: The setting has a mistake.
        MemoryError: There is too little for the figures that worker processes share.
        OSError, RuntimeError: The address can't be bound; which, is for the engine to say.
    """
    config = conf.load()
    server = build_server(config, max_workers=max_workers, interceptors=interceptors)
    bind(server, config, port, host=host)
    return server


def build_server(
    config: conf.ServerConfig,
    *,
    max_workers: int | None = None,
    interceptors: Iterable[Any] | None = None,
) -> Any:
    """Make a server with its servicers and without a port. See `create_server`."""
    pool = ThreadPoolExecutor(
        max_workers=config.max_workers if max_workers is None else max_workers,
        thread_name_prefix="grpc-worker",
    )
    loaded = [*load_interceptors(config.interceptors), *load_interceptors(interceptors)]
    arguments: dict[str, Any] = {
        "interceptors": loaded,
        "options": _options(config),
        "maximum_concurrent_rpcs": config.maximum_concurrent_rpcs,
    }
    server: Any
    try:
        if config.is_async:
            server = aio.server(migration_thread_pool=pool, **arguments)
        else:
            server = engine.server(pool, **arguments)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:  # nobody's mistake
            raise MemoryError(error.strerror) from error
        raise ImproperlyConfigured(f"{conf.SETTING}['options'] can't be used: {error}") from error
    if hasattr(server, "on_worker_exit"):
        server.on_worker_exit(connections.close_all)
    for pattern, limits in config.methods.items():
        server.set_method_limits(pattern, **dataclasses.asdict(limits))
    if config.access_log is not None:
        access_log.attach(server, config.access_log)
    if config.watchdog is not None:
        server.watch_calls(config.watchdog)
    add_servicers(server, config.servicers, load_instruments(config, loaded))
    try:
        enabling.enable(server, config.health)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"A hook of {conf.SETTING}['servicers'] has started the server: leave that to whoever "
            "made it."
        ) from error
    if config.reflection:
        enable_reflection(server)
    return server


def _options(config: conf.ServerConfig) -> list[tuple[str, Any]]:
    # Of a name that comes twice the first counts.
    options = list(config.options)
    if config.max_connections is not None:
        options.insert(0, ("django_grpc.max_connections", config.max_connections))
    # gRPC lets servers share a port unless told otherwise, so that a second one would be started
    # without a word, and take half of the calls.
    options.append(("grpc.so_reuseport", 0))
    return options


def loop_factory(config: conf.ServerConfig) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the asyncio loop of a server; None for asyncio's own.

    Raises:
        ImproperlyConfigured: The options ask for uvloop, which is not installed.
    """
    try:
        return loops.loop_factory(config.options)
    except ValueError as error:
        raise ImproperlyConfigured(f"{conf.SETTING}['options']: {error}") from error
