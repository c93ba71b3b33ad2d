"""The gRPC server of django-grpc, without Django.

`server` has the signature and the semantics of `grpc.server`, and what it returns is a
`grpc.Server`; underneath is an engine in Swift. Servicers, interceptors and generated
`*_pb2_grpc.py` modules work as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from django_grpc.engine import aio, loops
from django_grpc.engine._bindings import AbortError, Metadatum
from django_grpc.engine.credentials import (
    ServerCertificateConfiguration,
    ServerCredentials,
    dynamic_ssl_server_credentials,
    local_server_credentials,
    ssl_server_certificate_configuration,
    ssl_server_credentials,
)
from django_grpc.engine.options import ChannelArgument, items, server_settings
from django_grpc.engine.sync import Server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from django_grpc.engine.types import GenericHandler, Interceptor

__all__ = [
    "AbortError",
    "Metadatum",
    "Server",
    "ServerCertificateConfiguration",
    "ServerCredentials",
    "aio",
    "dynamic_ssl_server_credentials",
    "local_server_credentials",
    "server",
    "ssl_server_certificate_configuration",
    "ssl_server_credentials",
]


def server(
    thread_pool: Executor | None = None,
    handlers: Sequence[GenericHandler] | None = None,
    interceptors: Sequence[Interceptor] | None = None,
    options: Sequence[ChannelArgument] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
    xds: bool = False,
) -> Server:
    """Create a server, as `grpc.server` does.

    Args:
        thread_pool: Says by its size how many servicers may run at the same time. The engine runs
            them on threads of its own, which keep their thread-locals (Django's database
            connections) from call to call; the pool's threads are not used. `None` means the size
            that `ThreadPoolExecutor()` would have, and so does a pool that does not tell its size.
        handlers: Generic handlers, asked in order for methods that are not registered.
        interceptors: Called for each call, the first one outermost.
        options: `grpc.*` channel arguments; see `django_grpc.engine.options`. One that has no
            meaning here is a warning that names it.
        maximum_concurrent_rpcs: Calls beyond it are answered RESOURCE_EXHAUSTED.
        compression: How responses are compressed, unless a call says otherwise.
        xds: Not supported.

    Returns:
        A server that is not started; `add_insecure_port` or `add_secure_port`, then `start` it.

    Raises:
        TypeError: An argument that is a list is none, or `maximum_concurrent_rpcs` no whole number.
        ValueError: `xds` is true, uvloop is asked for and missing, an option has a value of the
            wrong type, `compression` is no `grpc.Compression`, or something among the interceptors
            is none.
    """
    if xds:
        raise ValueError("django_grpc.engine.server() does not support xds=True.")
    options = items("options", options)
    return Server(
        server_settings(thread_pool, options, maximum_concurrent_rpcs, compression),
        items("handlers", handlers),
        items("interceptors", interceptors),
        loops.loop_factory(options),
    )
