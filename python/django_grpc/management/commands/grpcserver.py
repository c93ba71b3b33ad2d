"""`manage.py grpcserver`."""

import argparse
import asyncio
import datetime
import errno
import gc
import logging
import threading
import time
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections

from django_grpc import conf, engine, utils
from django_grpc.certificates import CertificateWatcher
from django_grpc.management import reloading
from django_grpc.management.shutdown import ShutdownRequest, end_process_soon
from django_grpc.signals import grpc_shutdown

logger = logging.getLogger("django_grpc")

# What an errno says of an address that can't be bound.
_BIND_ERRORS = {
    errno.EACCES: "this user has no permission for it",
    errno.EADDRINUSE: "it is already in use",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
}

# The options that stand above keys of the settings, by attribute of `conf.ServerConfig`.
_FLAGS = (
    "max_workers",
    "grace",
    "host",
    "drain_delay",
    "max_connections",
    "workers",
    "worker_max_calls",
    "worker_max_calls_jitter",
    "worker_max_age",
    "worker_max_memory",
    "health",
    "metrics",
    "access_log",
    "watchdog",
)

# What ends the wait when the server was stopped by something else than this command.
_STOPPED = "stopped"

# The seconds that a changed file waits for calls in flight.
_RELOAD_GRACE = 1.0


class Command(BaseCommand):
    """Serve the project's gRPC servicers until SIGTERM or SIGINT.

    A subclass may override `get_config`, `get_server`, `on_listening` and `on_shutdown`.
    """

    help = "Run gRPC server"

    # They are run by serve(), which --autoreload starts again and again.
    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django declares it

    _credentials: engine.ServerCredentials | None = None

    # Whether a drain ended with calls that had to be cut.
    _has_cut_calls = False

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "addrport",
            nargs="?",
            help="Optional port number, or address:port, or unix:PATH; it stands above --host "
            "and --port.",
        )
        parser.add_argument("--max_workers", type=int, help="Number of workers")
        parser.add_argument("--port", type=int, default=50051, help="Port number to listen")
        parser.add_argument(
            "--host", help="Address to listen on, or unix:PATH. Default: every address."
        )
        parser.add_argument(
            "--grace",
            type=float,
            help="Seconds that calls in flight get to end in at shutdown. Default: 30.",
        )
        parser.add_argument(
            "--drain-delay",
            type=float,
            help="Seconds between the signal to stop and the drain, for load balancers to notice.",
        )
        parser.add_argument(
            "--max-connections", type=int, help="Connections at once, over all worker processes."
        )
        parser.add_argument(
            "--workers", type=int, help="Worker processes; 0 is one for each processor. Default: 1."
        )
        parser.add_argument(
            "--worker-max-calls", type=int, help="Calls after which a worker process is replaced."
        )
        parser.add_argument(
            "--worker-max-calls-jitter",
            type=int,
            help="How many calls more, at random, it may take. Default: a tenth of them.",
        )
        parser.add_argument(
            "--worker-max-age",
            type=float,
            help="Seconds after which a worker process is replaced.",
        )
        parser.add_argument(
            "--worker-max-memory",
            type=int,
            help="MiB of resident memory at which a worker process is replaced.",
        )
        parser.add_argument(
            "--health",
            action=argparse.BooleanOptionalAction,
            help="Answer the standard health service. Default: yes.",
        )
        parser.add_argument(
            "--metrics", help="Where to serve Prometheus metrics: address:port or unix:PATH."
        )
        parser.add_argument(
            "--access-log",
            choices=("text", "json"),
            help="Log every call to the logger django_grpc.access.",
        )
        parser.add_argument(
            "--watchdog",
            type=float,
            help="Seconds after which a call that still runs is logged with its stack.",
        )
        parser.add_argument(
            "--autoreload",
            action="store_true",
            default=False,
            help="Start again when a source file changes (for development).",
        )
        parser.add_argument(
            "--list-handlers",
            action="store_true",
            default=False,
            help="Print all registered endpoints",
        )
        parser.add_argument(
            "--skip-checks", action="store_true", default=False, help="Skip system checks."
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as the process's command: the process ends even if a call that was cut goes on."""
        status: object = 0
        try:
            super().run_from_argv(argv)
        except SystemExit as leaving:
            status = leaving.code
            raise
        finally:
            if self._has_cut_calls:
                end_process_soon(status if isinstance(status, int) else 1)

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve, with or without the reloader."""
        if not options["autoreload"]:
            with ShutdownRequest() as shutdown:
                self.serve(shutdown, **options)
        elif reloading.is_child():
            self.stdout.write("ATTENTION! Autoreload is enabled!")
            reloading.run_child(lambda shutdown: self._serve_reloaded(shutdown, **options))
        else:
            reloading.run_parent()

    def _serve_reloaded(self, shutdown: ShutdownRequest, **options: Any) -> None:
        try:
            self.serve(shutdown, **options)
        except CommandError as error:
            self.stderr.write(f"{type(error).__name__}: {error}")
            self.stderr.flush()
            if isinstance(error.__cause__, OSError | RuntimeError):
                end_process_soon(1, seconds=0)  # the address can't be bound: no file mends that
            elif isinstance(cause := _root_cause(error), ImportError):
                raise cause from None  # Django watches the file that the traceback ends in

    def serve(self, shutdown: ShutdownRequest, **options: Any) -> None:
        """Serve until a shutdown is requested, then drain.

        Raises:
            CommandError: A mistake of the user's.
        """
        self.stdout.write(f"gRPC server starting at {datetime.datetime.now()}")
        try:
            config = self.get_config(**options)
            # One sentence, where the system checks would print a report.
            for key, paths in (
                ("servicers", config.servicers),
                ("interceptors", config.interceptors),
                ("health.checks", config.health.checks if config.health else ()),
            ):
                for path in paths:
                    conf.import_configured(key, path)
            self._run_checks(**options)
            if config.is_async:
                with asyncio.Runner(loop_factory=utils.loop_factory(config)) as runner:
                    runner.run(self._serve_async(shutdown, config, **options))
            else:
                self._serve(shutdown, config, **options)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error

    def _serve(self, shutdown: ShutdownRequest, config: conf.ServerConfig, **options: Any) -> None:
        server = self.get_server(config)
        address = self._bind(server, config, **options)
        _leave_to_the_process()
        server.start()
        self._watch_certificates(config)
        self.on_listening(server, config, address, **options)

        def follow_server() -> None:  # in case that a servicer stops it
            server.wait_for_termination()
            shutdown.request(_STOPPED)

        threading.Thread(target=follow_server, name="grpcserver-follow", daemon=True).start()
        grace = self._get_grace(shutdown.wait(), config)
        begun = time.monotonic()
        server.stop(grace).wait()
        self._has_cut_calls = time.monotonic() - begun >= grace
        self.on_shutdown()

    async def _serve_async(
        self, shutdown: ShutdownRequest, config: conf.ServerConfig, **options: Any
    ) -> None:
        server = self.get_server(config)
        address = self._bind(server, config, **options)
        _leave_to_the_process()
        await server.start()
        self._watch_certificates(config)
        self.on_listening(server, config, address, **options)
        grace = self._get_grace(await asyncio.to_thread(shutdown.wait), config)
        begun = time.monotonic()
        await server.stop(grace)
        self._has_cut_calls = time.monotonic() - begun >= grace
        # Receivers may be ordinary functions that use the ORM, which a loop's thread may not.
        await asyncio.to_thread(self.on_shutdown)

    def get_config(self, **options: Any) -> conf.ServerConfig:
        """Read the settings, with the options in place of theirs.

        Raises:
            CommandError: One of them has a mistake.
        """
        try:
            return conf.load({name: options.get(name) for name in _FLAGS})
        except conf.InvalidSetting as error:
            raise CommandError(str(error)) from error

    def get_server(self, config: conf.ServerConfig) -> Any:
        """Make the server, with its servicers and without a port."""
        return utils.build_server(config)

    def on_listening(
        self, server: Any, config: conf.ServerConfig, address: str, **options: Any
    ) -> None:
        """Say that the server is up."""
        port = address.rpartition(":")[2] if not address.startswith("unix") else address
        self.stdout.write(f"gRPC server is listening port {port}")
        self.stdout.write(f"Address {address}, {config.max_workers} workers. Quit with CONTROL-C.")
        if options["list_handlers"]:
            self.stdout.write("Registered handlers:")
            for handler in utils.extract_handlers(server):
                self.stdout.write(f"* {handler}")
        self.stdout.flush()

    def on_shutdown(self) -> None:
        """Tell the project, once the server has drained."""
        try:
            grpc_shutdown.send(None)
        except Exception as error:
            # The process ends all the same, and as well as it can.
            logger.exception("A receiver of grpc_shutdown failed")
            self.stderr.write(f"Error during graceful shutdown: {error}")
        self.stdout.write("Graceful shutdown completed")

    def _get_grace(self, reason: str, config: conf.ServerConfig) -> float:
        grace = config.grace
        if reason == reloading.RELOAD:
            grace = min(grace, _RELOAD_GRACE)
        elif reason != _STOPPED:
            self.stdout.write(
                f"Received {reason}. Starting graceful shutdown, "
                f"calls in flight have {grace:g} s to end..."
            )
            self.stdout.flush()
        return grace

    def _run_checks(self, **options: Any) -> None:
        try:
            if not options["skip_checks"]:
                self.check()  # from Django 6.1 on some of them ask the database
            self.check_migrations()
        except DatabaseError as error:
            # A gRPC server may well come up before its database.
            self.stdout.write(
                self.style.WARNING(
                    f"The database can't be asked, some checks are left out: {error}"
                )
            )
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:  # a test's transaction
                connection.close()

    def _bind(self, server: Any, config: conf.ServerConfig, **options: Any) -> str:
        host, port = _parse_address(config.host, options["port"], options["addrport"])
        address = utils.format_address(host, port)
        if config.credentials is not None:
            self._credentials = utils.load_credentials(config.credentials)
        try:
            bound = utils.bind(server, config, port, host=host, credentials=self._credentials)
        except (OSError, RuntimeError) as error:
            reason = _why_not_bound(error)
            raise CommandError(f"The server can't listen on {address}: {reason}.") from error
        try:
            utils.bind_metrics(server, config)
        except (OSError, RuntimeError) as error:
            reason = _why_not_bound(error)
            raise CommandError(
                f"Metrics can't be served on {config.metrics}: {reason}. Change --metrics or "
                f"{conf.SETTING}['metrics']."
            ) from error
        return address if address.startswith("unix") else utils.format_address(host, bound)

    def _watch_certificates(self, config: conf.ServerConfig) -> None:
        settings, loaded = config.credentials, self._credentials
        if settings is not None and loaded is not None:
            CertificateWatcher(
                settings.paths(), lambda: utils.renew_credentials(settings, loaded)
            ).start()


def _leave_to_the_process() -> None:
    # What has been imported by now stays for the process's life. Out of the collector's sight it
    # no longer costs each full collection some milliseconds, in the middle of somebody's call.
    gc.collect()
    gc.freeze()


def _why_not_bound(error: OSError | RuntimeError) -> str:
    # The engine raises grpcio's RuntimeError, caused by the system's own error.
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        return _BIND_ERRORS.get(cause.errno or 0, cause.strerror or str(cause))
    return str(cause or error)


def _parse_address(host: str, port: int, addrport: str | None) -> tuple[str, int]:
    if addrport and addrport.startswith(("unix:", "unix-abstract:")):
        return addrport, 0
    if addrport:
        given_host, _, given_port = addrport.rpartition(":")
        if not given_port.isdecimal() or (":" in given_host and not given_host.startswith("[")):
            raise CommandError(
                f"{addrport!r} is not a port number, an address:port pair or a unix:PATH."
            )
        host, port = given_host or host, int(given_port)
    if not 0 <= port <= 65535:
        raise CommandError(f"{port} is not a port number: it must be at most 65535.")
    return host, port


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
