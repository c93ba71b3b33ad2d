"""Making a server from `settings.GRPCSERVER`."""

import asyncio
import contextlib
import dataclasses
import difflib
import errno
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_grpc import access_log, conf, engine, queries, tracing
from django_grpc.addresses import format_address
from django_grpc.descriptions import describe
from django_grpc.engine import aio, loops
from django_grpc.engine.credentials import refused_because
from django_grpc.engine.health import SERVICE_NAME
from django_grpc.health import enabling
from django_grpc.wrapping.shapes import Instrument
from django_grpc.wrapping.wrapper import SignalWrapper

logger = logging.getLogger(__name__)


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


def check_methods(server: Any, config: conf.ServerConfig) -> None:
    """Refuse limits of methods that there are not.

    Generic handlers that have to be asked may know more of them than the server. So may
    interceptors, but hardly one does: there it is a warning.

    Args:
        server: As `build_server` has made it, with all its servicers.
        config: What it was made of.

    Raises:
        ImproperlyConfigured: A path of ``methods`` is no servicer's.
    """
    if not config.servicers or not server.knows_all_methods:
        return
    paths = [*server.method_handlers(), *_OWN_METHODS]
    services = {path.rpartition("/")[0] + "/*" for path in paths}
    for pattern in config.methods:
        if pattern != "*" and pattern not in paths and pattern not in services:
            close = difflib.get_close_matches(pattern, paths, n=1)
            problem = f"{conf.SETTING}['methods']: no servicer has '{pattern}'." + (
                f" Did you mean '{close[0]}'?" if close else ""
            )
            if not config.interceptors:
                raise ImproperlyConfigured(problem)
            logger.warning("%s Its limits count if an interceptor continues with it.", problem)


# The engine's, or added later.
_OWN_METHODS = (
    f"/{SERVICE_NAME}/Check",
    f"/{SERVICE_NAME}/Watch",
    f"/{SERVICE_NAME}/List",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


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


def load_credentials(credentials: conf.Credentials) -> engine.ServerCredentials:
    """Read the files of the ``credentials`` setting.

    Raises:
        ImproperlyConfigured: A file can't be read, or the engine can't use what it holds.
    """
    pairs, roots, require_client_auth = _read_credentials(credentials)
    with _naming_credentials(credentials, pairs):
        loaded = engine.ssl_server_credentials(
            pairs,
            roots,
            require_client_auth,
            minimum_tls_version=credentials.minimum_tls_version,
            cipher_suites=credentials.cipher_suites,
        )
    _warn_of_dates(credentials, pairs)
    return loaded


def renew_credentials(credentials: conf.Credentials, loaded: engine.ServerCredentials) -> None:
    """Read the files again, for the connections that come from now on.

    Raises:
        ImproperlyConfigured: As `load_credentials`; what was loaded stays in use then.
    """
    pairs, roots, require_client_auth = _read_credentials(credentials)
    with _naming_credentials(credentials, pairs):
        loaded.renew(pairs, roots, require_client_auth)
    _warn_of_dates(credentials, pairs)


def _warn_of_dates(credentials: conf.Credentials, pairs: list[tuple[bytes, bytes]]) -> None:
    """Say what nobody else does: the handshake fails at the client."""
    for paths, (_, chain) in zip(credentials.key_pairs, pairs, strict=True):
        if (reason := refused_because(chain)) is not None:
            logger.warning(
                "Clients refuse the certificate in '%s': %s.", paths.certificate_chain, reason
            )


@contextlib.contextmanager
def _naming_credentials(
    credentials: conf.Credentials, pairs: list[tuple[bytes, bytes]]
) -> Iterator[None]:
    """Say which files can't be used."""
    try:
        yield
    except ValueError as error:
        files, reason = f"'{credentials.root_certificates}'", error
        for paths, pair in zip(credentials.key_pairs, pairs, strict=True):
            try:
                engine.ssl_server_credentials([pair])
            except ValueError as of_pair:
                files = f"'{paths.private_key}' with '{paths.certificate_chain}'"
                reason = of_pair
                break
        said = str(reason).removeprefix("Cannot use the server credentials: ")
        raise ImproperlyConfigured(
            f"{conf.SETTING}['credentials']: {files} can't be used: {said}."
        ) from error


def _read_credentials(
    credentials: conf.Credentials,
) -> tuple[list[tuple[bytes, bytes]], bytes | None, bool]:
    root_certificates = credentials.root_certificates
    return (
        [
            (_read(pair.private_key), _read(pair.certificate_chain))
            for pair in credentials.key_pairs
        ],
        None if root_certificates is None else _read(root_certificates),
        credentials.require_client_auth,
    )


# Of the credentials, in bytes: all the world's authorities take a tenth of it.
_LARGEST_FILE = 4 << 20


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:  # as a device that never ends is
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    except OSError as error:
        raise ImproperlyConfigured(
            f"{conf.SETTING}['credentials']: '{path}' can't be read: {error.strerror}."
        ) from error
    return content


def add_servicers(
    server: Any, servicers_list: Sequence[str], instruments: Sequence[Instrument] = ()
) -> None:
    """Call the hooks that register servicers, with a server that adds the signals.

    Args:
        server: A server that hasn't started.
        servicers_list: Dotted paths of functions that take the server.
        instruments: What is put around the methods, beside the signals.

    Raises:
        ImproperlyConfigured: A path can't be imported, or names no ordinary function; no hook
            registers anything.
    """
    if not servicers_list:
        logger.warning(
            "%s names no servicers: the server will answer no call. Did you forget its "
            "'servicers' list?",
            conf.SETTING,
        )
    wrapper = SignalWrapper(server, instruments)
    idle: list[str] = []
    for path in servicers_list:
        logger.debug("Adding the servicers of %s", path)
        before = wrapper.registrations
        with wrapper.in_hook(f"{conf.SETTING}['servicers']: '{path}'"):
            result = conf.call_configured("servicers", path, wrapper)
        if inspect.iscoroutine(result) or inspect.isgenerator(result):
            result.close()
            raise ImproperlyConfigured(
                f"{conf.SETTING}['servicers']: '{path}' is an async function or a generator, which "
                "nobody runs: make it an ordinary function."
            )
        if wrapper.registrations == before:
            idle.append(path)
    # One of several may have its reasons; where it is all of them, nothing would be served.
    for path in idle:
        problem = (
            f"{conf.SETTING}['servicers']: '{path}' adds no servicer to the server that it is given"
        )
        if len(idle) == len(servicers_list):
            raise ImproperlyConfigured(
                f"{problem}: call the generated add_MyServiceServicer_to_server(MyService(), "
                "server) in it."
            )
        logger.warning("%s.", problem)


def load_instruments(config: conf.ServerConfig, interceptors: Iterable[Any]) -> list[Instrument]:
    """Make what the settings ask to be put around methods, the outermost last.

    Args:
        config: The settings.
        interceptors: Those of the server.

    Raises:
        ImproperlyConfigured: Something is asked for that is not installed.
    """
    instruments: list[Instrument] = []
    if config.access_log is not None and config.access_log.sql:
        queries.watch_connections()
        instruments.append(queries.count_queries)
    if (spans := tracing.load(config, interceptors)) is not None:
        instruments.append(spans)
    return instruments


def load_interceptors(
    strings: Iterable[Any] | None, place: str = f"{conf.SETTING}['interceptors']"
) -> list[Any]:
    """Make the interceptors that dotted paths name, in order.

    Args:
        strings: Dotted paths of classes, called without arguments; what is not a string is taken
            for an interceptor and passed on.
        place: What the messages call the place of the paths.

    Raises:
        ImproperlyConfigured: A path can't be imported, or something is no interceptor.
    """
    loaded = []
    for it in strings or ():
        who, made = repr(it), it
        if isinstance(it, str):
            who = f"{place}: '{it}'"
            named = conf.import_configured("interceptors", it, place)
            if inspect.isabstract(named):
                missing = ", ".join(sorted(getattr(named, "__abstractmethods__", ())))
                raise ImproperlyConfigured(f"{who} is an abstract class: it has no {missing}.")
            made = conf.call_configured("interceptors", it, place=place)
        if not hasattr(made, "intercept_service"):
            raise ImproperlyConfigured(
                f"{who} is no grpc.ServerInterceptor: it has no method 'intercept_service'."
            )
        if not conf.takes(made.intercept_service, None, None):
            raise ImproperlyConfigured(
                f"{who}: its intercept_service can't be called as it has to be: "
                "def intercept_service(self, continuation, handler_call_details)."
            )
        loaded.append(made)
    return loaded


def extract_handlers(server: Any) -> Iterator[str]:
    """Describe every method of a server, one line each, sorted by path.

    `django_grpc.descriptions.describe` gives the same as objects.
    """
    for description in describe(server):
        yield str(description)


def enable_reflection(server: Any) -> None:
    """Let clients ask a server for its services, through the reflection services v1 and v1alpha.

    Call it when all servicers have been added: those that come later are not listed.

    Args:
        server: A server that hasn't started.

    Raises:
        ImproperlyConfigured: The package grpcio-reflection is missing.
    """
    from django_grpc import reflection

    services = {path.split("/")[1] for path in server.method_handlers()}
    if server.health.is_served:
        services.add(SERVICE_NAME)
    reflection.register(server, services)
