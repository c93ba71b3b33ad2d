"""Serving in this process, for `manage.py grpcserver`.

It is apart from the command because it needs grpcio, which the parent of worker processes does not
load.
"""

import asyncio
import contextlib
import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from django_grpc import building, conf, engine, hygiene, tracing
from django_grpc.addresses import format_address
from django_grpc.certificates import CertificateWatcher
from django_grpc.descriptions import describe
from django_grpc.engine import aio
from django_grpc.lifecycle import ending_loop, threads
from django_grpc.lifecycle.place import STOPPED, Place, announce_shutdown
from django_grpc.lifecycle.process_end import end_process
from django_grpc.lifecycle.shutdown import ShutdownRequest
from django_grpc.management import complaints, reloading, titles
from django_grpc.management.pid_file import PidFile
from django_grpc.processes import systemd
from django_grpc.processes.listeners import address_of

if TYPE_CHECKING:
    from django_grpc.management.commands.grpcserver import Command

# The seconds that a changed file waits for calls in flight.
_RELOAD_GRACE: Final = 1.0

# The seconds in which a database may tell which migrations it has.
_DATABASE_TIMEOUT: Final = 5.0

# The seconds that methods have whose calls have been cut.
_LAST_MOMENT: Final = 1.0


class OwnPlace(Place):
    """A process that serves alone, on an address of its own or on what systemd has bound."""

    def __init__(self, host: str, port: int, sockets: systemd.Sockets, pid_file: PidFile) -> None:
        """Name the address; systemd's sockets stand above it."""
        self._pid_file = pid_file
        self._host = host
        self._port = port
        self._sockets = sockets

    def listen(
        self, server: Any, config: conf.ServerConfig, credentials: engine.ServerCredentials | None
    ) -> str:
        """Bind the address."""
        if self._sockets.calls:
            address = self._listen_on_inherited(server, config, credentials)
        else:
            address = self._bind(server, config, credentials)
        inherited = self._sockets.metrics
        try:
            if inherited:
                server.add_metrics_port(f"fd:{inherited[0]}")
            else:
                building.bind_metrics(server, config)
        except (OSError, RuntimeError) as error:
            address_of_metrics = None if inherited else config.metrics
            raise CommandError(complaints.about_metrics(address_of_metrics, error)) from error
        self._pid_file.write()
        return address

    def _listen_on_inherited(
        self, server: Any, config: conf.ServerConfig, credentials: engine.ServerCredentials | None
    ) -> str:
        addresses = []
        for descriptor in self._sockets.calls:
            host = f"fd:{descriptor}"
            try:
                addresses.append(address_of(descriptor))  # which is the server's afterwards
                building.bind(server, config, 0, host=host, credentials=credentials)
            except (OSError, RuntimeError) as error:
                raise CommandError(complaints.about_address(f"systemd's {host}", error)) from error
        return ", ".join(addresses)

    def _bind(
        self, server: Any, config: conf.ServerConfig, credentials: engine.ServerCredentials | None
    ) -> str:
        address = format_address(self._host, self._port)
        try:
            bound = building.bind(
                server, config, self._port, host=self._host, credentials=credentials
            )
        except (OSError, RuntimeError) as error:
            raise CommandError(complaints.about_address(address, error)) from error
        return address if address.startswith("unix") else format_address(self._host, bound)

    def started(self) -> None:
        """Tell systemd."""
        systemd.notify_ready("Serving")

    def stopping(self, reason: str) -> None:
        """Tell systemd."""
        systemd.notify_stopping()


def serve(command: "Command", place: Place, shutdown: ShutdownRequest, **options: Any) -> None:
    """Serve until a shutdown is requested, then drain.

    Args:
        command: For its hooks: `get_config`, `get_server`, `on_listening` and `on_shutdown`.
        place: Where connections come from.
        shutdown: Ends the serving.
        options: The command's.

    Raises:
        CommandError: A mistake of the user's, or the system has no threads left.
        StoppedAtStart: A shutdown was requested before anything was served.
    """
    with _naming_mistakes():
        config = place.configure(command.read_config(**options))
        # One sentence, where the system checks would print a report.
        for key, paths in (
            ("servicers", config.servicers),
            ("interceptors", config.interceptors),
            ("health.checks", config.health.checks if config.health else ()),
        ):
            for path in paths:
                conf.import_configured(key, path)
        if (problem := tracing.find_problem(config)) is not None:
            raise conf.InvalidSetting(problem)
        if place.is_first:
            _run_checks(command, **options)
        serving = _Serving(command, place, shutdown, config, options)
        if config.is_async:
            with (
                ending_loop.making_runner(config, serving.give_up) as (runner, watch),
                _naming_mistakes(),
                serving.abandoned_on_error(),
            ):
                runner.run(serving.run_async(watch))
        else:
            with serving.abandoned_on_error():
                serving.run()


def list_handlers(command: "Command", **options: Any) -> None:
    """Print what would be served, without listening: also beside a server that runs.

    Args:
        command: For its hooks: `get_config` and `get_server`.
        options: The command's.

    Raises:
        CommandError: A mistake of the user's.
    """

    def write() -> None:
        server = _get_server(command, config)
        command.stdout.write("Registered handlers:")
        for handler in describe(server):
            command.stdout.write(f"* {handler}")

    async def write_async() -> None:
        write()

    with _naming_mistakes():
        config = command.read_config(**options)
        if config.is_async:
            with (
                ending_loop.making_runner(config, command.give_up) as (runner, _),
                _naming_mistakes(),
            ):
                runner.run(write_async())
        else:
            write()


@contextlib.contextmanager
def _naming_mistakes() -> Iterator[None]:
    try:
        yield
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error
    except MemoryError as error:
        what = str(error) or "The server can't go on"  # Python's own says nothing
        raise CommandError(complaints.about_memory(what)) from error


def _get_server(command: "Command", config: conf.ServerConfig) -> Any:
    """Return what `get_server` does, which a project may have written.

    Raises:
        CommandError: It is no server, or one of the other kind.
    """
    server = command.get_server(config)
    if not isinstance(server, aio.Server if config.is_async else engine.Server):
        what = "an async server" if config.is_async else "a server"
        raise CommandError(
            f"{type(command).__module__}.Command.get_server() returns an object of type "
            f"{type(server).__name__}, where {what} is needed: return what "
            "super().get_server(config) does."
        )
    return server


class _Serving:
    def __init__(
        self,
        command: "Command",
        place: Place,
        shutdown: ShutdownRequest,
        config: conf.ServerConfig,
        options: dict[str, Any],
    ) -> None:
        self._command = command
        self._place = place
        self._shutdown = shutdown
        self._config = config
        self._options = options
        self._server: Any = None
        self._credentials: engine.ServerCredentials | None = None
        self._address = ""
        self._reason = ""  # of the end
        self._has_started = False
        self._shutting_down = threading.Lock()
        self._has_shut_down = False

    def run(self) -> None:
        def follow_server() -> None:  # in case that a servicer stops it
            self._server.wait_for_termination()
            self._shutdown.request(STOPPED)

        self._make_server()
        threads.start(follow_server, name="grpcserver-follow")
        self._shutdown.begin_serving()
        with _naming_start():
            self._server.start()
        self._started()
        grace = self._wait()
        cut_at = time.monotonic() + grace
        self._server.stop(grace).wait()
        self._let_methods_end(cut_at)
        self._shut_down()

    async def run_async(self, watch: ending_loop.LoopWatch) -> None:
        # For what may block: the wait, and receivers of the shutdown, which may be ordinary
        # functions that use the ORM. The thread is started now: later the system may refuse it.
        executor = ThreadPoolExecutor(1, "grpcserver-wait")

        async def run_blocking(function: Callable[..., Any], *arguments: Any) -> Any:
            run = functools.partial(self._run_to_end, function, *arguments)
            result, error = await asyncio.get_running_loop().run_in_executor(executor, run)
            if error is not None:
                raise error
            return result

        try:
            self._make_server()
            with threads.explaining_refusal():
                await run_blocking(_do_nothing)
            self._shutdown.begin_serving()
            with _naming_start():
                await self._server.start()
            following = asyncio.ensure_future(self._follow_server())
            self._started()
            grace, cut_at = await run_blocking(self._wait_on_thread, watch)
            await self._server.stop(grace)
            await run_blocking(self._finish, cut_at)
            await following
        finally:
            executor.shutdown(wait=False)

    async def _follow_server(self) -> None:
        await self._server.wait_for_termination()  # in case that a servicer stops it
        self._shutdown.request(STOPPED)

    @contextlib.contextmanager
    def abandoned_on_error(self) -> Iterator[None]:
        """Leave no server, nor a thread that waits for its end, behind what is raised.

        In a process that the project has forked, and which leaves by it, all that is the parent's.
        """
        process = os.getpid()
        try:
            yield
        except BaseException:
            if os.getpid() != process:
                raise
            self._shutdown.request(STOPPED)
            if isinstance(self._server, aio.Server):
                self._server.stop_without_loop()
            elif self._server is not None:
                self._server.stop(None)
            self._shut_down()
            raise

    def _run_to_end(
        self, function: Callable[..., Any], *arguments: Any
    ) -> tuple[Any, BaseException | None]:
        """Return what a function returns or raises: asyncio's futures take no StopIteration.

        A process that the function has forked ends with it: there the loop is not run any more.
        """
        process = os.getpid()
        result = raised = None
        try:
            result = function(*arguments)
        except BaseException as error:
            raised = error
        if os.getpid() != process:
            end_process(0 if raised is None else self._command.tell(raised), 0)
        return result, raised

    def _wait_on_thread(self, watch: ending_loop.LoopWatch) -> tuple[float, float]:
        grace = self._wait()
        cut_at = time.monotonic() + grace
        watch.watch_from(cut_at)  # a method may block the loop for ever
        return grace, cut_at

    def _finish(self, cut_at: float) -> None:
        """Do on a thread what comes after the drain; something may block the loop meanwhile."""
        self._let_methods_end(cut_at)
        self._shut_down()

    def give_up(self, error: BaseException | None) -> None:
        """End the process, as the loop does not go on."""
        status = reloading.RELOAD_STATUS if self._reason == reloading.RELOAD else 0
        self._command.give_up(error, status, self._shut_down)

    def _let_methods_end(self, cut_at: float) -> None:
        """Wait for methods whose calls are over: a client's deadline must not cut one short.

        And for what they do in the thread of `sync_to_async`.

        Args:
            cut_at: When calls are cut; methods have a moment more, to see that theirs was.
        """
        was_cut = time.monotonic() >= cut_at
        cut_at = max(cut_at, time.monotonic() + _LAST_MOMENT)
        have_ended = self._server.join(cut_at - time.monotonic())
        has_come_through = hygiene.wait_for_sync_thread(max(0.0, cut_at - time.monotonic()))
        self._command.has_cut_calls = was_cut or not (have_ended and has_come_through)

    def _shut_down(self) -> None:
        """Tell the project of the end of what has served, once; return when it has been told."""
        with self._shutting_down:
            if self._has_started and not self._has_shut_down:
                self._has_shut_down = True
                self._command.on_shutdown()

    def _make_server(self) -> None:
        self._server = _get_server(self._command, self._config)
        if self._config.credentials is not None:
            self._credentials = building.load_credentials(self._config.credentials)
        self._address = self._place.listen(self._server, self._config, self._credentials)
        self._watch_certificates()
        if self._command.is_process:
            _leave_to_the_process()

    def _started(self) -> None:
        self._has_started = True
        self._command.on_listening(self._server, self._config, self._address, **self._options)
        titles.name_threads()
        self._place.started()

    def _wait(self) -> float:
        """Wait for the end, and return the seconds that calls get."""
        self._reason = reason = self._shutdown.wait()
        grace = self._config.grace
        self._place.stopping(reason)
        if reason == reloading.RELOAD:
            return min(grace, _RELOAD_GRACE)
        if reason != STOPPED and not self._place.is_worker:
            self._command.say_stopping(reason, grace)
            if self._config.drain_delay:
                announce_shutdown(self._server)
                time.sleep(self._config.drain_delay)
        return grace

    def _watch_certificates(self) -> None:
        settings, loaded = self._config.credentials, self._credentials
        if settings is not None and loaded is not None:
            watcher = CertificateWatcher(
                settings.paths(), lambda: building.renew_credentials(settings, loaded)
            )
            with threads.explaining_refusal():
                watcher.start()


def _do_nothing() -> None:
    pass


@contextlib.contextmanager
def _naming_start() -> Iterator[None]:
    try:
        with threads.explaining_refusal():
            yield
    # ValueError when it has started already, TypeError for what is no method handler.
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).removeprefix("Cannot start the server: ")
        raise CommandError(f"The server can't start: {reason}") from error


def _run_checks(command: "Command", **options: Any) -> None:
    try:
        if not options["skip_checks"]:
            _run_system_checks(command)
        if options["verbosity"] > 0:  # all that it does is to tell
            _check_migrations(command)
    except DatabaseError as error:
        _say_unasked(command, error)
    _close_connections()


def _run_system_checks(command: "Command") -> None:
    try:
        command.check()
    except (CommandError, DatabaseError):
        raise
    except Exception:
        _refuse_misfit_database()  # from Django 6.1 on some of them ask the database
        raise


def _check_migrations(command: "Command") -> None:
    """Warn of migrations that are not applied, if the database answers soon.

    One whose host says nothing would keep the server from starting for minutes.
    """
    if any(it.in_atomic_block for it in connections.all(initialized_only=True)):
        command.check_migrations()  # in a test's transaction, which is this thread's
        return
    failures: list[BaseException] = []
    has_looked = threading.Event()

    def look() -> None:
        try:
            _refuse_misfit_database()
            command.check_migrations()
        except Exception as error:
            failures.append(error)
        finally:
            _close_connections()
            has_looked.set()

    threads.start(look, name="grpcserver-migrations")
    if not has_looked.wait(_DATABASE_TIMEOUT):
        _say_unasked(command, f"it says nothing for {_DATABASE_TIMEOUT:g} s")
    if failures:
        raise failures[0]


def _refuse_misfit_database() -> None:
    """See that what the settings say of the database is something that its driver takes.

    Raises:
        CommandError: The driver refuses it with an error that is no database's.
    """
    try:
        connections[DEFAULT_DB_ALIAS].ensure_connection()
    except (DatabaseError, ImproperlyConfigured):
        pass  # Django says what there is to say
    except Exception as error:
        raise CommandError(
            f"DATABASES['{DEFAULT_DB_ALIAS}'] can't be used: {type(error).__name__}: {error}"
        ) from error


def _say_unasked(command: "Command", why: object) -> None:
    # A gRPC server may well come up before its database.
    command.say(
        command.style.WARNING(f"The database can't be asked, some checks are left out: {why}")
    )


def _close_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:  # a test's transaction
            connection.close()


def _leave_to_the_process() -> None:
    # What has been imported by now stays for the process's life. Out of the collector's sight it
    # no longer costs each full collection some milliseconds, in the middle of somebody's call.
    gc.collect()
    gc.freeze()
