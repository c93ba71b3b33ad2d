"""`manage.py grpcserver`."""

import asyncio
import contextlib
import dataclasses
import datetime
import importlib
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

from django import get_version
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_grpc import conf, greenlets, logs
from django_grpc.addresses import format_address, is_unix, parse_addrport
from django_grpc.conf.keys import KEYS
from django_grpc.lifecycle.output import flush_or_lose, make_output_tolerant
from django_grpc.lifecycle.process_end import (
    end_in_peace,
    end_process,
    end_threads_soon,
    run_for,
)
from django_grpc.lifecycle.shutdown import ShutdownRequest, StoppedAtStart
from django_grpc.logs import GuardedLogger, text_of
from django_grpc.management import complaints, reloading, titles
from django_grpc.management.arguments import add_flag, unicode_text
from django_grpc.management.pid_file import PidFile
from django_grpc.processes import listeners, systemd
from django_grpc.processes.protocol import Inheritance, Plan
from django_grpc.processes.recycling import unheeded_limits
from django_grpc.processes.supervisor import SupervisionError, Supervisor
from django_grpc.signals import grpc_shutdown

# What needs grpcio is imported where this process serves: the parent of workers does not.

logger = GuardedLogger("django_grpc")

# The seconds that receivers of grpc_shutdown have where something blocks the loop.
_LAST_RECEIVERS_TIMEOUT = 5.0


class Command(BaseCommand):
    """Serve the project's gRPC servicers until SIGTERM or SIGINT.

    A subclass may override `get_config`, `get_server`, `on_listening` and `on_shutdown`.
    """

    help = "Run gRPC server"

    # They are run by whoever serves: with --autoreload and with workers that is another process.
    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django declares it

    #: Whether a drain ended with calls that had to be cut.
    has_cut_calls = False

    #: Whether this process is the command's, and ends with it.
    is_process = False

    # Whether nothing is printed but mistakes.
    _is_silent = False

    # What this process inherits, when it is a worker.
    _inheritance: Inheritance | None = None

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "addrport",
            nargs="?",
            type=unicode_text,
            help="Optional port number, or address:port, or unix:PATH; it stands above --host "
            "and --port.",
        )
        for key in KEYS.values():
            if key.flag is not None:
                add_flag(parser, key.flag_name, key.flag)
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
            help="Print the methods that would be served, and end.",
        )
        parser.add_argument(
            "--skip-checks", action="store_true", default=False, help="Skip system checks."
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as the process's command.

        The process ends even if something in it goes on: a call that was cut, a thread or a log
        handler of the project's.
        """
        self.is_process = True
        status = 1
        try:
            super().run_from_argv(argv)
            status = 0
        except SystemExit as leaving:
            if leaving.code is None or isinstance(leaving.code, int):
                status = leaving.code or 0
            raise
        finally:
            if status == 0:
                end_in_peace()
            flush_or_lose()
            # A call that ignores its cancellation may hold up more than threads.
            end_threads_soon(status, limits_atexit=self.has_cut_calls or logs.are_under_way())

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve: as a worker, with the reloader, with workers, or alone."""
        make_output_tolerant(self)
        self._is_silent = options["verbosity"] == 0
        _refuse(greenlets.refuse_patched_threads)  # before the first thread, which might never end
        _refuse_running_loop()
        with complaints.naming_share():
            self._inheritance = Inheritance.take()
        if self._inheritance is not None:
            self._serve_as_worker(self._inheritance, **options)
        elif options["list_handlers"]:
            self._list_handlers(**options)
        elif options["autoreload"] and not reloading.is_child():
            reloading.run_parent(self.stderr)
        else:
            try:
                self._serve_or_supervise(**options)
            except StoppedAtStart as stopped:
                self._say_stopped_at_start(stopped, **options)

    def _serve_or_supervise(self, **options: Any) -> None:
        if options["autoreload"]:
            self.say("ATTENTION! Autoreload is enabled!")
            reloading.run_child(
                lambda shutdown: self._serve_reloaded(shutdown, **options),
                is_process=self.is_process,
            )
            return
        with ShutdownRequest(is_starting=True, is_last=self.is_process) as shutdown:
            self._say_starting()
            config = self.read_config(**options)
            if config.worker_count > 1:
                with PidFile(config.pidfile) as pid_file:
                    self._supervise(config, shutdown, pid_file, **options)
            else:
                shutdown.wake_for_signals()
                self._say_unheeded(config)
                self._say_unheard()
                self._serve_alone(shutdown, **options)

    def _serve_reloaded(self, shutdown: ShutdownRequest, **options: Any) -> None:
        try:
            self._say_starting()
            config = self.read_config(**options)
            if config.worker_count > 1:
                self.say("With --autoreload there is one process: 'workers' does not count.")
            else:
                self._say_unheeded(config)
            self._serve_alone(shutdown, **options)
        except StoppedAtStart as stopped:  # by the other thread, which waits for this one
            self._say_stopped_at_start(stopped, **options)
        except CommandError as error:
            self.stderr.write(f"{type(error).__name__}: {error}")
            self.stderr.flush()
            if isinstance(error.__cause__, OSError | RuntimeError):
                # The address can't be bound, or a thread not be started: no file mends that.
                end_process(reloading.HOPELESS_STATUS, 0)
            elif isinstance(cause := _root_cause(error), ImportError | SystemExit):
                raise cause from None  # what its traceback names is watched

    def _say_unheeded(self, config: conf.ServerConfig) -> None:
        for name in unheeded_limits(config):
            self.say(f"One process is not replaced: '{name}' counts with more 'workers'.")

    def _say_stopped_at_start(self, stopped: StoppedAtStart, **options: Any) -> None:
        self.say_stopping(stopped.reason, self.read_config(**options).grace)
        self._say_stopped()

    def _list_handlers(self, **options: Any) -> None:
        from django_grpc.management import serving

        serving.list_handlers(self, **options)

    def _serve_alone(self, shutdown: ShutdownRequest, **options: Any) -> None:
        from django_grpc.management import serving

        with PidFile(self.read_config(**options).pidfile) as pid_file:
            place = serving.OwnPlace(*self._get_address(**options), _take_sockets(), pid_file)
            serving.serve(self, place, shutdown, **options)

    def _serve_as_worker(self, inheritance: Inheritance, **options: Any) -> None:
        from django_grpc.management import serving
        from django_grpc.processes.worker import WorkerPlace

        if self.is_process:
            titles.name_process("worker")
        with ShutdownRequest(is_last=self.is_process) as shutdown:
            with complaints.naming_share():
                place = WorkerPlace(inheritance, shutdown, self._get_address(**options))
            serving.serve(self, place, shutdown, **options)

    def _supervise(
        self,
        config: conf.ServerConfig,
        shutdown: ShutdownRequest,
        pid_file: PidFile,
        **options: Any,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise CommandError(
                "Worker processes need the main thread, for the signals: run the command there, or "
                "give --workers 1."
            )
        _refuse(greenlets.refuse_patched_processes)
        if self.is_process:
            titles.name_process("parent")
        sockets = _take_sockets()
        host, port = self._get_address(**options)
        address = format_address(host, port)
        reuse_port = dict(reversed(config.options)).get("grpc.so_reuseport", 0)
        listening: list[listeners.ListeningSocket] = []
        metrics: list[listeners.ListeningSocket] = []

        def on_up(plan: Plan) -> None:
            self._say_listening(
                listeners.addresses(listening),
                config,
                f"{plan.workers} processes of {plan.max_workers} threads",
            )

        try:
            try:
                listening += [listeners.adopt(it) for it in sockets.calls]
                if not listening:
                    listening += listeners.bind(address, reuse_port=bool(reuse_port))
            except OSError as error:
                where = "systemd's socket" if sockets.calls else address
                raise CommandError(complaints.about_address(where, error)) from error
            try:
                if sockets.metrics:
                    metrics.append(listeners.adopt(sockets.metrics[0]))
                elif config.metrics is not None:
                    metrics += listeners.bind(config.metrics)
            except OSError as error:
                where_metrics = None if sockets.metrics else config.metrics
                raise CommandError(complaints.about_metrics(where_metrics, error)) from error
            pid_file.write()
            with complaints.naming_share():
                supervisor = Supervisor(
                    Plan.of(dataclasses.replace(config, host=host, port=port)),
                    listening,
                    metrics,
                    has_bound=not sockets.calls,
                    write=self.say,
                    on_up=on_up,
                )
        except BaseException:
            for bound in listening + metrics:
                bound.close()
            raise
        try:
            supervisor.run(shutdown.begin_serving)
        except SupervisionError as error:
            raise CommandError(str(error), returncode=error.status) from error
        shutdown.request("stopped")  # whose signals the supervisor has had
        self._say_stopped()

    def _get_address(self, **options: Any) -> tuple[str, int]:
        config = self.read_config(**options)
        try:
            return parse_addrport(config.host, config.port, options["addrport"])
        except ValueError as error:
            raise CommandError(str(error)) from error

    def read_config(self, **options: Any) -> conf.ServerConfig:
        """Return what `get_config` does, which a project may have written.

        Raises:
            CommandError: One of the settings has a mistake, or it returns something else.
        """
        config = self.get_config(**options)
        if not isinstance(config, conf.ServerConfig):
            raise CommandError(
                f"{type(self).__module__}.Command.get_config() returns an object of type "
                f"{type(config).__name__}, where a ServerConfig is needed: return what "
                "super().get_config(**options) does."
            )
        return config

    # What a subclass may override

    def get_config(self, **options: Any) -> conf.ServerConfig:
        """Read the settings, with the options in place of theirs.

        Raises:
            CommandError: One of them has a mistake.
        """
        try:
            return conf.load(
                {it.attribute: options.get(it.attribute) for it in KEYS.values() if it.flag}
            )
        except conf.InvalidSetting as error:
            raise CommandError(str(error)) from error

    def get_server(self, config: conf.ServerConfig) -> Any:
        """Make the server, with its servicers and without a port; in each worker process."""
        from django_grpc import building

        server = building.build_server(config)
        building.check_behaviors(server)
        building.check_methods(server, config)
        return server

    def on_listening(
        self, server: Any, config: conf.ServerConfig, address: str, **options: Any
    ) -> None:
        """Say that the server is up; called in each worker process, for whom the parent says it."""
        if self._inheritance is None:
            self._say_listening(address, config, f"{config.max_workers} threads")

    def on_shutdown(self) -> None:
        """Tell the project, once the server has drained; called in each worker process."""
        try:
            grpc_shutdown.send(None)
        except Exception as error:
            # The process ends all the same, and as well as it can.
            logger.exception("A receiver of grpc_shutdown failed")
            self.stderr.write(f"Error during graceful shutdown: {text_of(error)}")
        if self._inheritance is None:
            self._say_stopped()

    # What is printed

    def say(self, text: str) -> None:
        """Print a line for whoever started the command, unless it is to be silent."""
        if not self._is_silent:
            self.stdout.write(text)
            self.stdout.flush()

    def _say_starting(self) -> None:
        self.say(f"gRPC server starting at {datetime.datetime.now()}")
        self.say(f"Django version {get_version()}, using settings {settings.SETTINGS_MODULE!r}")

    def _say_unheard(self) -> None:
        """Warn where Python runs no handlers of signals."""
        if threading.current_thread() is not threading.main_thread():
            self.say(
                self.style.WARNING(
                    "Here is not the main thread, so SIGTERM and SIGINT start no drain: run the "
                    "command there, or in a process of its own."
                )
            )

    def _say_listening(self, address: str, config: conf.ServerConfig, threads: str) -> None:
        port = address if is_unix(address) else address.rpartition(":")[2]
        security = "plaintext" if config.credentials is None else "TLS"
        self.say(f"gRPC server is listening port {port}")
        self.say(f"Address {address}, {security}, {threads}. Quit with CONTROL-C.")

    def say_stopping(self, reason: str, grace: float) -> None:
        """Say that the server drains, and why."""
        self.say(
            f"Received {reason}. Starting graceful shutdown, "
            f"calls in flight have {grace:g} s to end..."
        )

    def give_up(
        self,
        error: BaseException | None,
        status: int = 0,
        shut_down: Callable[[], object] = lambda: None,
    ) -> None:
        """End the process, if it is the command's own, as the server's loop does not go on.

        Args:
            error: What was to end it otherwise; it is told, and gives the status.
            status: The process's where there is none.
            shut_down: Called before, to tell the project.
        """
        logger.error(
            "An async method blocks the event loop, or a task does, and the server can't stop: "
            "what blocks belongs into asyncio.to_thread() or sync_to_async()."
        )
        if self.is_process:
            run_for(shut_down, _LAST_RECEIVERS_TIMEOUT)  # they may wait for the loop
            end_process(status if error is None else self.tell(error), 0)

    def tell(self, error: BaseException) -> int:
        """Tell of what ends a process as Django does, and return the status that goes with it."""
        if isinstance(error, StoppedAtStart):
            return 0
        if isinstance(error, KeyboardInterrupt):
            return 128 + signal.SIGINT
        if isinstance(error, SystemExit):
            if isinstance(error.code, int | None):
                return error.code or 0
            self.stderr.write(str(error.code))
            return 1
        if isinstance(error, CommandError):
            self.stderr.write(f"{type(error).__name__}: {error}")
            return error.returncode
        traceback.print_exception(error)
        return 1

    def _say_stopped(self) -> None:
        self.say("Graceful shutdown completed")


def _refuse(find_fault: Callable[[], None]) -> None:
    try:
        find_fault()
    except RuntimeError as error:
        raise CommandError(str(error)) from error


def _refuse_running_loop() -> None:
    with contextlib.suppress(RuntimeError):  # there is none
        asyncio.get_running_loop()
        raise CommandError(
            "grpcserver waits for its end, which nothing must do on an event loop: call it by "
            "asyncio.to_thread(), or in a process of its own."
        )


def _take_sockets() -> systemd.Sockets:
    try:
        return systemd.take_sockets()
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def __getattr__(name: str) -> Any:
    """Give what the module of django-grpc has from elsewhere, for who imports or patches it there.

    It is not here from the start because the parent of worker processes loads no engine.
    """
    if name in ("create_server", "extract_handlers"):
        from django_grpc import utils

        return getattr(utils, name)
    if name in ("asyncio", "signal", "time"):
        return importlib.import_module(name)
    if name == "autoreload":
        return importlib.import_module("django.utils.autoreload")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
