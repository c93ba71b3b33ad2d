"""The engine as a `grpc.Server`."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import itertools
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import grpc

from django_grpc import _engine
from django_grpc.addresses import is_url
from django_grpc.engine import loops
from django_grpc.engine.call_log import CallLogThread, CallRecord
from django_grpc.engine.credentials import ServerCredentials
from django_grpc.engine.handlers import HandlerTable
from django_grpc.engine.health import Health
from django_grpc.engine.observers import Observer
from django_grpc.engine.surroundings import inside
from django_grpc.engine.watchdog import Watchdog
from django_grpc.greenlets import refuse_patched_threads
from django_grpc.log_lines import LogLineThread
from django_grpc.logs import relieve_this_thread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from django_grpc.engine.health import Monitor
    from django_grpc.engine.types import GenericHandler, Interceptor, MethodHandler, Surroundings

logger = logging.getLogger("django_grpc")

#: How long the interpreter's end waits for servicers that are still running, in seconds.
_EXIT_TIMEOUT = 5.0

#: How long a server that has stopped waits until its last calls are logged, in seconds.
_LOG_TIMEOUT = 5.0

#: The same for its last lines of other logs.
_LINES_TIMEOUT = 1.0


class Server(grpc.Server):
    """A `grpc.Server` with grpcio's semantics.

    Methods may be called from any thread. Ports are bound when they are added, but no thread is
    started before `start`, so a process may fork in between. In one that is forked later the server
    counts as stopped.
    """

    def __init__(
        self,
        settings: Mapping[str, int],
        handlers: Sequence[GenericHandler],
        interceptors: Sequence[Interceptor],
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        *,
        is_aio: bool = False,
    ) -> None:
        """Create a server; `django_grpc.engine.server` is the public way.

        Args:
            settings: What `django_grpc.engine.options` makes of options.
            handlers: Generic handlers.
            interceptors: The outermost first.
            loop_factory: What makes the loop of async methods; None is asyncio's.
            is_aio: What differs between grpcio's two servers is as in grpc.aio.
        """
        exit_callbacks: list[Callable[[], object]] = []
        # Before the native server: what it raises must leave nothing behind.
        self._handlers = HandlerTable(
            interceptors,
            max_threads=settings["max_workers"],
            exit_callbacks=exit_callbacks,
            asks_on_loop=is_aio,
        )
        native = _engine.make_server(settings)
        if is_aio:
            native.follow_grpc_aio()
        self._stopped = threading.Event()
        self._observers: list[Observer] = []
        self.health = Health(native, self._handlers.known)
        self._threads = _Threads(native, loop_factory, exit_callbacks)
        # Reentrant, as a handler of a signal may stop the server in the middle of its start.
        self._lock = threading.RLock()
        self._is_started = False
        self._is_stopping = False
        # When what runs is cut, by the clock of `time.monotonic`; None before a stop.
        self._cut_at: float | None = None
        # Whether it was started in the process that this one was forked from.
        self._is_lost = False
        self._on_end: Callable[[], None] = _nothing
        # That of a loop of somebody else's; None when async methods run on one of ours.
        self._loop_descriptor: int | None = None
        # The last: `__del__` asks for it, also where a signal has raised in between.
        self.native = native
        if handlers:
            self.add_generic_rpc_handlers(handlers)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[GenericHandler]) -> None:
        """Add handlers that are asked, in order, for methods that are not registered."""
        self._handlers.add_generic(tuple(generic_rpc_handlers))
        if self._is_started:
            self._handlers.install(self.native)
            self.health.add_services()

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, MethodHandler]
    ) -> None:
        """Register a service's methods; they go before generic handlers."""
        if self._is_started:
            logger.warning("Cannot register method handlers once server has started")
            return
        self._handlers.add_registered(service_name, method_handlers)

    def set_method_limits(
        self,
        pattern: str,
        *,
        concurrency: int | None = None,
        queue: int = 0,
        timeout: float | None = None,
        max_timeout: float | None = None,
        max_message: int | None = None,
        retry_after: float = 1.0,
    ) -> None:
        """Limit what methods may cost; before `start`.

        Args:
            pattern: ``/package.Service/Method``, ``/package.Service/*`` or ``*``; of those that a
                method matches the most precise one counts, alone.
            concurrency: Calls that run at once. Default: no limit.
            queue: Calls more than that which wait for their turn, by default none; past it a call
                gets RESOURCE_EXHAUSTED.
            timeout: Seconds of a call whose client sets no deadline. Default: none.
            max_timeout: The most seconds that a call gets. Default: no limit.
            max_message: The largest message in, in bytes after decompression. Default: the
                server's ``grpc.max_receive_message_length``.
            retry_after: Seconds after which a client that was refused should try again; it is told
                in ``grpc-retry-pushback-ms``, spread by a fifth either way.
        """
        self.native.set_method_limits(
            pattern,
            _or_none(concurrency),
            queue,
            _milliseconds(timeout),
            _milliseconds(max_timeout),
            _or_none(max_message),
            _milliseconds(retry_after),
        )

    def method_handlers(self) -> dict[str, MethodHandler]:
        """Return the method handlers that are known by path, `/package.Service/Method`.

        Those of a generic handler that only answers when it is asked are not among them.
        """
        return self._handlers.known()

    @property
    def knows_all_methods(self) -> bool:
        """Whether there is no generic handler that only answers when it is asked."""
        return self._handlers.knows_all

    def add_insecure_port(self, address: str) -> int:
        """Bind `address` for plaintext and return its port.

        Raises:
            RuntimeError: The address cannot be bound; its cause is the `OSError`.
        """
        return self._add_port(address, None)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Bind `address` for TLS and return its port.

        Raises:
            TypeError: The credentials are not those of `django_grpc.engine`.
            RuntimeError: The address cannot be bound; its cause is the `OSError`.
        """
        if not isinstance(server_credentials, ServerCredentials):
            raise TypeError(
                "add_secure_port() needs credentials made by "
                "django_grpc.engine.ssl_server_credentials() or its like; those of grpc keep their "
                "keys where only grpc can read them."
            )
        return self._add_port(address, server_credentials)

    def _add_port(self, address: str | bytes, credentials: ServerCredentials | None) -> int:
        text = address.decode() if isinstance(address, bytes) else address
        if not isinstance(text, str):
            raise TypeError(f"An address is a text as '127.0.0.1:50051', not {address!r}.")
        native, refresh = (
            (None, None) if credentials is None else (credentials.native, credentials.refresh)
        )
        return self._bind(text, lambda text: self.native.add_port(text, native, refresh))

    def _bind(self, text: str, bind: Callable[[str], int]) -> int:
        if self._is_lost:
            raise RuntimeError(
                f"Failed to bind to address {text}: the server runs in the process that this one "
                "was forked from; make another one here."
            )
        try:
            if is_url(text):
                raise ValueError("it is a URL; write it as host:port")
            return bind(text)
        except OSError as error:
            # grpcio's exception and wording, with the reason that it leaves out.
            reason = error.strerror or error
            raise RuntimeError(f"Failed to bind to address {text}: {reason}") from error
        except ValueError as error:
            raise RuntimeError(f"Failed to bind to address {text}: {error}") from error

    def add_metrics_port(self, address: str) -> int:
        """Serve figures over HTTP on `address` and return its port; before `start`.

        ``/metrics`` has them for Prometheus, ``/calls`` what runs, as JSON; ``/livez`` and
        ``/readyz`` are for probes. They are answered without Python, until the server drains,
        when a successor may have the address.

        Raises:
            RuntimeError: The address cannot be bound; its cause is the `OSError`.
        """
        return self._bind(address, self.native.add_operations_port)

    def enable_health(
        self, *, max_queue_wait: float | None = None, monitor: Monitor | None = None
    ) -> None:
        """Answer ``grpc.health.v1.Health`` from the start on; see `Health.enable`.

        Raises:
            ValueError: The server has been started.
        """
        if self._is_started:
            raise ValueError("enable_health() has to be called before start().")
        self.health.enable(max_queue_wait=max_queue_wait, monitor=monitor)

    def announce_shutdown(self) -> None:
        """Have the health say NOT_SERVING from now on, and serve as ever."""
        self.health.announce_shutdown()

    def log_calls(
        self,
        write: Callable[[list[CallRecord], int], None],
        *,
        sample: float = 1.0,
        slow: float = 0.0,
    ) -> None:
        """Have calls that have ended written down, refused ones too; before `start`.

        Args:
            write: Called on a thread of its own with a batch of calls, and the number of those that
                were dropped before it because `write` could not keep up. The last batch has been
                written before the server counts as stopped.
            sample: The part of the calls that it gets, from 0 to 1.
            slow: Seconds that a call must have taken at least. Calls that end with a status that is
                the server's fault are written whatever the two say.

        Raises:
            ValueError: They are written down already: the engine gives a call out once.
        """
        if any(isinstance(it, CallLogThread) for it in self._observers):
            raise ValueError(
                "log_calls() may be called once; GRPCSERVER['access_log'] does it, too. Have one "
                "function write to both places, or one of the two left out."
            )
        self.native.enable_call_log(sample, slow)
        self._observe(CallLogThread(self.native, write))

    def surround_calls(self, surroundings: Surroundings) -> None:
        """Have something called before and after everything that runs for a call; before `start`.

        Interceptors, methods and their generators, callbacks: on each thread that runs some of it,
        and in the task of a call on a loop. Around what is logged of calls and of the server's
        health on threads of the server's own, too. A second call replaces what the first one gave.
        """
        self._handlers.surroundings = surroundings
        for observer in self._observers:
            observer.surroundings = surroundings
        self._threads.lines.around = functools.partial(inside, surroundings)
        self.native.surround_calls(surroundings)

    def watch_calls(self, seconds: float) -> None:
        """Log calls whose servicer runs for so long, once each, with their stacks; before `start`.

        They go to the logger ``django_grpc.watchdog``.

        Raises:
            ValueError: They are watched already.
        """
        if any(isinstance(it, Watchdog) for it in self._observers):
            raise ValueError(
                "watch_calls() may be called once; GRPCSERVER['watchdog'] does it, too. Leave one "
                "of the two out."
            )
        self._observe(Watchdog(self.native, seconds))

    def _observe(self, observer: Observer) -> None:
        observer.surroundings = self._handlers.surroundings
        self._observers.append(observer)

    def adopt_connections(
        self, intake: int, released: int, server_credentials: ServerCredentials | None = None
    ) -> None:
        """Serve connections that another process accepts, from `start` on.

        They come as descriptors over a Unix socket (SCM_RIGHTS). While the server drains they are
        still taken in, and sent away, until the other process shuts its side down for writing.

        Args:
            intake: The descriptor of that socket, of type SOCK_SEQPACKET; the server's now.
            released: An eventfd that is raised by one for each of them that has gone; the
                server's now. -1 is none.
            server_credentials: For TLS; None is plaintext.

        Raises:
            ValueError: The server has been started; or the credentials are dynamic ones, whose
                fetcher would not be asked before connections that somebody else accepts.
        """
        if server_credentials is not None and server_credentials.refresh is not None:
            raise ValueError(
                "adopt_connections() can't ask the fetcher of dynamic credentials: give it those "
                "of ssl_server_credentials(), and call their renew()."
            )
        native = None if server_credentials is None else server_credentials.native
        self.native.adopt_connections(intake, released, native)

    def start(self) -> None:
        """Start serving.

        Raises:
            ValueError: The server has been started before.
            RuntimeError: gevent or eventlet has patched the process's threads; or the system
                refuses a thread, or something else that serving needs. The server has stopped then,
                and has given its ports back.
        """
        refuse_patched_threads()
        with self._lock:
            if self._is_started:
                raise ValueError("Cannot start already-started server!")
            self._is_started = True
            _started.add(self)
            try:
                self._handlers.install(self.native)
                self._threads.start()
                self.health.start()
                for observer in self._observers:
                    observer.start()
                self.native.start()  # the last: from now on there are calls
            except BaseException as error:
                was_stopped = self._is_stopping
                self._give_up()
                if was_stopped and isinstance(error, ValueError):
                    return  # a handler of a signal has stopped it: so there is nothing to start
                raise
            _running.add(self)

    def _give_up(self) -> None:
        """Undo a start that has failed, as far as it came."""
        # If it listens: until that is over. Otherwise, or without a control thread, nobody waits.
        # A stop in the middle of the start has its own callback called, in the place of this one.
        is_over = self._stopped if self._is_stopping else threading.Event()
        self._is_stopping = True
        self.health.stop()
        self.native.drain(is_over.set)
        self.native.cancel_all_calls()
        deadline = time.monotonic() + _EXIT_TIMEOUT
        if self._threads.are_started():
            is_over.wait(_EXIT_TIMEOUT)
            if self._loop_descriptor is None:
                self._threads.stop_loop()
        self.native.stop_threads()
        self._handlers.close()
        for observer in self._observers:
            observer.close()
            observer.join(max(0.0, deadline - time.monotonic()))
        self._threads.join(deadline)
        self._stopped.set()

    def stop(self, grace: float | None = None) -> threading.Event:
        """Refuse new calls at once, and end those in flight after `grace` seconds.

        Args:
            grace: Seconds that calls in flight are given; `None` ends them now, and waits for it.

        Returns:
            An event that is set when everything has ended.
        """
        if self._is_lost:
            return self._stopped
        with self._lock:
            if not self._is_started or self._stopped.is_set():
                self._stopped.set()
                self.native.drain(_nothing)
                return self._stopped
        self.drain(0.0 if grace is None else grace)
        if grace is None:
            self.native.cancel_all_calls()
            # In the middle of a start, before there is a thread that would tell: `start` ends it.
            if self._threads.are_started():
                self._stopped.wait()
        else:
            self.native.cancel_all_calls_after(grace)
        return self._stopped

    def drain(self, grace: float | None = None) -> None:
        """Refuse new calls; what begins a stop.

        Args:
            grace: The seconds that what runs is given, if that is known. The shortest counts.
        """
        if self._is_lost:
            return
        with self._lock:
            is_first = not self._is_stopping
            self._is_stopping = True
            if grace is not None:
                self._limit(grace)
        if is_first:
            self.health.stop()
        # By whoever comes: a signal handler that stops it, too, may have interrupted the first.
        self.native.drain(self._on_stopped)

    def cancel_all_calls(self) -> None:
        """End every call in flight with UNAVAILABLE."""
        if self._is_lost:
            return
        self.native.cancel_all_calls()

    def start_on(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]) -> None:
        """Start serving with async methods on a loop, which runs on this thread.

        Args:
            loop: The running loop; whoever gives it calls `leave` at the end.
            on_end: Called on the control thread when the last connection is gone.
        """
        self._on_end = on_end
        try:
            self._loop_descriptor = loops.attach(self.native, loop)
        except OSError as error:
            self.stop(None)
            raise RuntimeError(f"Cannot start the server: {error.strerror or error}") from error
        try:
            self.start()
        except BaseException:
            loop.remove_reader(self._loop_descriptor)
            self._loop_descriptor = None
            self.native.lose_loop()
            raise

    async def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the server, which has stopped, off the loop that `start_on` was given."""
        if self._loop_descriptor is not None:
            await loops.detach(self.native, loop, self._loop_descriptor, self._when_cut)

    def lose_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go on without the loop that `start_on` was given, which runs no more; its calls end.

        Not in a process that was forked: what the loop waits with is the parent's as well.
        """
        if self._loop_descriptor is not None and not self._is_lost:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.remove_reader(self._loop_descriptor)
            self._loop_descriptor = None
            self.native.lose_loop()

    def _limit(self, grace: float) -> None:
        cut_at = time.monotonic()
        with contextlib.suppress(TypeError, OverflowError):  # the engine refuses it
            cut_at += grace
        self._cut_at = cut_at if self._cut_at is None else min(cut_at, self._cut_at)

    def _when_cut(self) -> float:
        """When tasks are left whose calls are over: as ordinary methods, at the grace's end."""
        return time.monotonic() if self._cut_at is None else self._cut_at

    @property
    def is_lost(self) -> bool:
        """Whether this process was forked from the one that the server was started in."""
        return self._is_lost

    def has_stopped(self) -> bool:
        """Whether the server stops or has stopped."""
        return self._is_stopping or self._stopped.is_set()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped.

        Returns:
            True when `timeout` seconds passed first, as grpcio has it.
        """
        return not self._stopped.wait(timeout)

    def join(self, timeout: float) -> bool:
        """Wait for the methods of a server that has stopped.

        It has when all answers are over, and ordinary methods may go on after that: those whose
        client has cancelled, or set a deadline. grpcio's run on a pool, for whose threads Python
        waits.

        Args:
            timeout: Seconds, at the most.

        Returns:
            Whether they have all ended; False in one of them.
        """
        return self._is_lost or self._threads.join_workers(time.monotonic() + timeout)

    def on_worker_exit(self, callback: Callable[[], object]) -> None:
        """Have `callback` called on each worker thread before it ends.

        For what a thread keeps from call to call, such as a database connection.
        """
        self._threads.exit_callbacks.append(callback)

    def statistics(self) -> dict[str, int]:
        """Return figures of calls, connections and workers."""
        return self.native.statistics()

    def _on_stopped(self) -> None:
        if self._loop_descriptor is None:
            self._threads.stop_loop(self._when_cut)
        for observer in self._observers:
            observer.close()
            observer.join(_LOG_TIMEOUT)
        self._threads.lines.close()
        self._threads.lines.join(_LINES_TIMEOUT)
        self._stopped.set()
        self._on_end()
        self.native.stop_threads()
        self._handlers.close()
        _running.discard(self)

    def __del__(self) -> None:
        """Stop a server that nobody refers to any more, as grpcio does."""
        native = getattr(self, "native", None)
        if native is not None and not self._stopped.is_set():
            self.health.stop()
            for observer in self._observers:
                observer.close()
            native.drain(native.stop_threads)
            native.cancel_all_calls()
            if self._loop_descriptor is None:
                self._threads.stop_loop()
            self._handlers.close()

    def _lose(self) -> None:
        """Count as stopped in a process that was forked: the threads are the parent's."""
        self._is_lost = self._is_stopping = True
        self.native.lose()
        # Those that there are may be in the hands of a thread that is not here.
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._stopped.set()
        # Its end would wait for its event loops. So it never comes, not even at the interpreter's
        # end, which takes a module's variables away.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.native))

    def _stop_at_exit(self) -> None:
        """Join the threads before the interpreter goes away under them."""
        deadline = time.monotonic() + _EXIT_TIMEOUT
        self.health.stop()
        self.native.drain(self._on_stopped)
        self.native.cancel_all_calls()
        self._stopped.wait(_EXIT_TIMEOUT)
        self._threads.join(deadline)


class _Threads:
    """The Python threads of a server: its workers, and one for everything else.

    They are daemons, as the threads of grpcio's server are: a servicer that never returns must not
    keep the process alive.
    """

    def __init__(
        self,
        native: _engine.Server,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
        exit_callbacks: list[Callable[[], object]],
    ) -> None:
        self._native = native
        self._loop_factory = loop_factory
        self._threads: list[threading.Thread] = []
        self._workers: list[threading.Thread] = []
        self._spawned = itertools.count()
        self.exit_callbacks = exit_callbacks
        self._loop: loops.LoopThread | None = None
        # Nothing else starts, and nothing stops, while the control thread waits.
        self.lines = LogLineThread()

    def start(self) -> None:
        _groups.add(self)
        self._start(
            "grpc-control",
            self._run_control,
            self._spawn_worker,
            self._spawn_loop,
            self._spawn_callbacks,
        )

    def _run_control(self, *spawners: Callable[..., None]) -> None:
        relieve_this_thread(self.lines.take)
        try:
            self._native.run_control(*spawners)
        finally:
            self.lines.close()

    def _spawn_callbacks(self, kind: int) -> None:
        name = "grpc-renewals" if kind else "grpc-callbacks"
        self._start(name, self._native.run_callbacks, kind)

    def _spawn_worker(self) -> None:
        # Those that stepped in for held workers have ended since.
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._workers = [thread for thread in self._workers if thread.is_alive()]
        self._workers.append(self._start(f"grpc-worker-{next(self._spawned)}", self._run_worker))

    def _run_worker(self) -> None:
        self._native.run_worker()
        for callback in self.exit_callbacks:
            callback()

    def _spawn_loop(self) -> None:
        try:
            self._loop = loops.LoopThread(self._native, self._loop_factory)
        except RuntimeError as error:
            self._native.lose_loop()
            loops.log_seldom("Cannot start the asyncio thread", error)

    def stop_loop(self, cut_at: Callable[[], float] | None = None) -> None:
        """End the loop's thread, and wait for that if it is told how long."""
        if self._loop is not None:
            self._loop.stop(cut_at or time.monotonic)
            if cut_at is not None:
                self._loop.join(cut_at)
        if self._loop is None or self._loop.has_ended():
            self._native.detach_loop()  # so that no other begins

    def _start(self, name: str, target: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def are_started(self) -> bool:
        return bool(self._threads)

    def join(self, deadline: float) -> None:
        _join(self._threads, deadline)

    def join_workers(self, deadline: float) -> bool:
        return _join(self._workers, deadline)


def _join(them: list[threading.Thread], deadline: float) -> bool:
    for thread in them:
        if thread is not threading.current_thread():
            left = max(0.0, deadline - time.monotonic())
            thread.join(min(left, threading.TIMEOUT_MAX))
    return not any(thread.is_alive() for thread in them)


def _or_none(number: int | None) -> int:
    return -1 if number is None else number


def _milliseconds(seconds: float | None) -> int:
    return -1 if seconds is None else round(seconds * 1000)


def _nothing() -> None:
    pass


_started: weakref.WeakSet[Server] = weakref.WeakSet()
_running: weakref.WeakSet[Server] = weakref.WeakSet()
#: Those of servers that have stopped, too. While one of them runs, it keeps them here.
_groups: weakref.WeakSet[_Threads] = weakref.WeakSet()


@atexit.register
def _stop_servers() -> None:
    deadline = time.monotonic() + _EXIT_TIMEOUT
    for server in list(_running):
        server._stop_at_exit()
    for threads in list(_groups):
        threads.join(deadline)


def _lose_servers() -> None:
    _running.clear()
    _groups.clear()
    for server in list(_started):
        server._lose()


os.register_at_fork(after_in_child=_lose_servers)
