"""What the settings of a server are, once they have been read: `ServerConfig` and its parts."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django_grpc import tls


def default_max_workers() -> int:
    """The workers of a server that names no number: processors + 4, and at most 32.

    This is what `concurrent.futures.ThreadPoolExecutor` does, which is what django-grpc leaves it
    to. Each worker may hold a connection to every database of the project.
    """
    count = getattr(os, "process_cpu_count", os.cpu_count)()  # the first came with Python 3.13
    return min(32, (count or 1) + 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """One entry of the setting's ``credentials``: paths of PEM files."""

    private_key: str
    certificate_chain: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """What TLS needs.

    Attributes:
        key_pairs: At least one.
        root_certificates: Path of a PEM file with the authorities that may sign a client's
            certificate. Default: none, client certificates are not asked for.
        require_client_auth: Whether a client without such a certificate is refused; one that shows
            a certificate is verified by it either way. Default: False.
        minimum_tls_version: ``"TLSv1.2"`` or ``"TLSv1.3"``. Default: the first.
        cipher_suites: The suites of TLS 1.2 that a client may choose of, in whatever order.
            Default: all that HTTP/2 allows, `django_grpc.tls.CIPHER_SUITES`.
    """

    key_pairs: tuple[KeyPair, ...]
    root_certificates: str | None = None
    require_client_auth: bool = False
    minimum_tls_version: str = "TLSv1.2"
    cipher_suites: tuple[str, ...] = tuple(tls.CIPHER_SUITES)

    def paths(self) -> Iterator[str]:
        """Iterate over the paths of all the files."""
        for pair in self.key_pairs:
            yield pair.private_key
            yield pair.certificate_chain
        if self.root_certificates is not None:
            yield self.root_certificates


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodLimits:
    """What one method may cost: a value of the setting's ``methods``.

    Attributes:
        concurrency: Calls of the method that run at once. Default: no limit.
        queue: Calls more than that which wait for their turn; past it RESOURCE_EXHAUSTED. It needs
            ``concurrency``. Default: 0.
        timeout: Seconds of a call whose client sets no deadline. Default: none.
        max_timeout: The most seconds that a call gets, whatever its client asks for. Default: no
            limit.
        max_message: The largest message in, in bytes after decompression. Default: the server's
            ``grpc.max_receive_message_length``.
        retry_after: Seconds after which a refused client should try again, which it is told as
            ``grpc-retry-pushback-ms``; spread by 20 % either way. Default: 1.
    """

    concurrency: int | None = None
    queue: int = 0
    timeout: float | None = None
    max_timeout: float | None = None
    max_message: int | None = None
    retry_after: float = 1.0


DEFAULT_HEALTH_CHECKS = (
    "django_grpc.health.checks.databases",
    "django_grpc.health.checks.migrations",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """How a server finds out whether it is ready: the setting's ``health``.

    Attributes:
        checks: Dotted paths of functions without arguments that raise when the server is not ready.
            Default: every database answers, and no migration is left to apply.
        interval: Seconds between two rounds of the checks. Default: 10.
        timeout: Seconds after which a round that has not ended counts as failed. Default: 5.
        max_queue_wait: Seconds that the oldest call in the queue may have waited before the server
            is not ready. Default: 10.
    """

    checks: tuple[str, ...] = DEFAULT_HEALTH_CHECKS
    interval: float = 10.0
    timeout: float = 5.0
    max_queue_wait: float = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessLog:
    """What is logged of the calls: the setting's ``access_log``.

    Attributes:
        format: ``"text"`` or ``"json"``. Default: text.
        sample: The part of the calls that is logged, from 0 to 1. Calls that fail with a status
            that is the server's fault are logged always. Default: 1, all.
        slow: Seconds; only calls that take at least so long are logged, and those that fail with a
            status that is the server's fault. Default: 0, all.
        sql: Whether queries are counted and timed. Default: False.
    """

    format: str = "text"
    sample: float = 1.0
    slow: float = 0.0
    sql: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The validated settings of a server. Each attribute is a key of `settings.GRPCSERVER`.

    Attributes:
        servicers: Dotted paths of the functions that register servicers. Default: none.
        interceptors: Dotted paths of interceptor classes, outermost first. Default: none.
        maximum_concurrent_rpcs: Calls at once before RESOURCE_EXHAUSTED. Default: no limit.
        options: Channel arguments as (name, value). Default: none.
        credentials: For TLS. Default: none, plaintext.
        is_async: The key ``async``: whether the server is an asyncio one. Default: False.
        reflection: Whether the server describes its services to clients. Default: False.
        max_workers: Threads that run calls. Default: see `default_max_workers`.
        grace: Seconds that calls in flight get to end in when the server is stopped. Default: 30.
        drain_delay: Seconds between the signal to stop and the drain, in which the health service
            says NOT_SERVING and calls are served as ever. Default: 0.
        host: Address to listen on, or ``unix:PATH``. Default: ``[::]``, every address.
        port: TCP port; 0 lets the system choose. Default: 50051.
        pidfile: Path of a file for the id of the process that serves, the parent's where there are
            worker processes. Default: none.
        max_connections: Connections at once, over all worker processes. Default: no limit.
        workers: Worker processes; 0 is one for each processor, 1 is this process alone, without a
            supervisor. Default: 1.
        worker_max_calls: Calls after which a worker process is replaced. Default: never.
        worker_max_calls_jitter: How many calls more, at random, it may take. Default: a tenth of
            ``worker_max_calls``.
        worker_max_age: Seconds after which a worker process is replaced. Default: never.
        worker_max_memory: MiB of resident memory at which one is replaced. Default: never.
        worker_timeout: Seconds for which Python may not run in a worker process, as when a C
            extension keeps the GIL, before it is ended and replaced; None: it may for ever.
            Default: 60.
        worker_start_timeout: Seconds that a worker process may take until it can serve; None: any
            number. Default: 120.
        health: How readiness is found out; None: there is no health service. Default: `Health()`.
        metrics: Where metrics are served over HTTP: ``address:port`` or ``unix:PATH``. Default:
            nowhere.
        access_log: What is logged of the calls. Default: nothing.
        watchdog: Seconds after which a call that still runs is logged with its stack. Default:
            never.
        methods: Limits of methods, by path ``/package.Service/Method``, ``/package.Service/*`` or
            ``*``; the most precise one counts alone. Default: none.
        opentelemetry: Whether every call gets a span. Default: None, when the OpenTelemetry SDK is
            installed.
    """

    servicers: tuple[str, ...] = ()
    interceptors: tuple[str, ...] = ()
    maximum_concurrent_rpcs: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    credentials: Credentials | None = None
    is_async: bool = False
    reflection: bool = False
    max_workers: int
    grace: float = 30.0
    drain_delay: float = 0.0
    host: str = "[::]"
    port: int = 50051
    pidfile: str | None = None
    max_connections: int | None = None
    workers: int = 1
    worker_max_calls: int | None = None
    worker_max_calls_jitter: int | None = None
    worker_max_age: float | None = None
    worker_max_memory: int | None = None
    worker_timeout: float | None = 60.0
    worker_start_timeout: float | None = 120.0
    health: Health | None = Health()
    metrics: str | None = None
    access_log: AccessLog | None = None
    watchdog: float | None = None
    methods: Mapping[str, MethodLimits] = field(default_factory=dict)
    opentelemetry: bool | None = None

    @property
    def worker_count(self) -> int:
        """How many processes ``workers`` stands for; 0 is the processors that this one may use."""
        return self.workers or len(os.sched_getaffinity(0))
