"""The native module: what the Swift engine offers to `django_grpc.engine`.

Private. Nothing but `django_grpc.engine` imports it; everything here may change.
"""

import asyncio
import datetime
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextvars import ContextVar
from typing import Any, TypeVar, final

import grpc

from django_grpc.engine.types import MethodHandler, Surroundings

# As `django_grpc.engine.call_log.CallRecord` and `django_grpc.engine.watchdog.OverdueCall` name
# them.
_CallRecord = tuple[str, str, int, float, float, float | None, int, int, int, int, int, float]
_OverdueCall = tuple[
    str, str, float, float | None, int | None, int | None, asyncio.Task[Any] | None
]
_Behavior = Callable[..., Any]
_Resolver = Callable[[str, tuple[Any, ...]], MethodHandler | None]
_Result = TypeVar("_Result")
_AsyncResolver = Callable[[str, tuple[Any, ...]], Coroutine[Any, Any, MethodHandler | None]]

def configure(bindings: Mapping[str, object]) -> None:
    """Give the engine the Python objects that it needs; called once, at import."""

def make_server(configuration: Mapping[str, int], /) -> Server:
    """Make a server.

    Args:
        configuration: The engine's own setting names to whole numbers, times in milliseconds.

    Raises:
        ValueError: A setting that the engine does not know.
    """

def make_server_credentials(
    key_pairs: Sequence[tuple[bytes, bytes]],
    root_certificates: bytes | None,
    require_client_auth: bool,
    minimum_version: int,
    cipher_suites: Sequence[str],
) -> ServerCredentials:
    """Make credentials of PEM bytes.

    Args:
        key_pairs: Private keys and certificate chains.
        root_certificates: The authorities of clients.
        require_client_auth: Whether a client needs a certificate.
        minimum_version: 12 or 13, for TLS 1.2 or 1.3.
        cipher_suites: Those of TLS 1.2, by OpenSSL's names.

    Raises:
        ValueError: Text that is no key or certificate, or a key that does not fit.
    """

def make_local_credentials(is_unix: bool, /) -> ServerCredentials:
    """Make credentials that trust peers on this machine, without encryption.

    Args:
        is_unix: Whether they come over a Unix socket; otherwise from the loopback addresses.
    """

def certificate_validity(chain: bytes, /) -> tuple[int, int]:
    """Tell from when to when the first certificate of PEM bytes is valid, in seconds since 1970.

    Raises:
        TypeError: They are no bytes.
        ValueError: There is no certificate.
    """

def make_row_encoder(
    message_class: Any, plan: tuple[Any, ...], epoch: datetime.datetime
) -> RowEncoder:
    """Make an encoder of rows.

    Args:
        message_class: What each row becomes.
        plan: As `django_grpc.serializers.row_plan` makes it.
        epoch: 1970-01-01 UTC, aware.

    Raises:
        ValueError: What is no plan.
    """

def bind(address: str, reuse_port: bool) -> tuple[int, ...]:
    """Listen on an address, without waiting for a peer.

    The descriptors are the caller's, and so is the file of a Unix domain socket.

    Args:
        address: As `Server.add_insecure_port` takes it.
        reuse_port: Whether others may listen on it, too.

    Returns:
        At least one. A host that has several addresses, as ``localhost`` has for IPv4 and IPv6,
        gets one for each, all with one port; those of a family that the machine does not have are
        left out.

    Raises:
        OSError: It can't be bound.
        ValueError: It is no address.
    """

def make_statistics_board(descriptor: int, slots: int) -> StatisticsBoard:
    """Lay out a board in a file, or map one that is there.

    Args:
        descriptor: The file, which may be closed afterwards. One to lay out is empty.
        slots: How many processes may have one; 0: the board is there already.

    Raises:
        OSError: The system has no memory for it.
        ValueError: It is no board, or another version's.
    """

@final
class StatisticsBoard:
    """The figures of all worker processes, in memory that they share.

    Slots are numbered from 0. Each method raises ValueError for one that there is not.
    """

    def is_ready(self, slot: int, /) -> bool:
        """Whether a process says that it is ready for calls."""

    def pulse(self, slot: int, /) -> int:
        """Return when `beat` was called last, in milliseconds of CLOCK_MONOTONIC; 0: never."""

    def calls_ended(self, slot: int, /) -> int:
        """Return the calls that have ended in a slot, those of processes before included."""

    def beat(self, slot: int, /) -> None:
        """Tell that Python runs in the process of a slot."""

    def announce(self, slot: int, /) -> None:
        """Have a process say NOT_SERVING to health checks: its engine sees it, without Python."""

    def process_ended(self, slot: int, /) -> None:
        """Clear the gauges of a process that has ended. Its counters stay: sums must not fall.

        Calls that it had begun and can't end any more are counted as what their clients see.
        """

    def set_workers(self, count: int, /) -> None:
        """Say how many worker processes there ought to be."""

    def count_restart(self, reason: str, /) -> None:
        """Count that a worker was replaced, after a crash or by a plan.

        Raises:
            ValueError: There is no such reason.
        """

def check_metadata(items: Iterable[Any] | None, /) -> None:
    """Refuse metadata that a servicer can't send.

    Raises:
        TypeError, ValueError: As its context does.
    """

def without_collection(function: Callable[[], _Result], /) -> _Result:
    """Call a function of C's while no garbage is collected.

    Nobody else notices, as long as it keeps the GIL.
    """

def _run_call(context: ServicerContext, /) -> None: ...

@final
class ServerCredentials:
    """What `make_server_credentials` made."""

    def renew(
        self,
        key_pairs: Sequence[tuple[bytes, bytes]],
        root_certificates: bytes | None,
        require_client_auth: bool,
    ) -> None:
        """Serve later connections with others.

        Raises:
            ValueError: As `make_server_credentials`; what there was stays in use then.
        """

@final
class ServicerContext(grpc.ServicerContext):
    """A call, as its servicer sees it; a virtual subclass of `grpc.ServicerContext`."""

    def invocation_metadata(self) -> tuple[Any, ...]: ...
    def peer(self) -> str: ...
    def peer_identities(self) -> list[bytes] | None: ...
    def peer_identity_key(self) -> str | None: ...
    # The stubs of grpcio say bytes; its server gives lists of them.
    def auth_context(self) -> dict[str, list[bytes]]: ...  # type: ignore[override]
    def set_compression(self, compression: grpc.Compression) -> None: ...
    def send_initial_metadata(self, initial_metadata: Iterable[Any]) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: Iterable[Any]) -> None: ...
    def trailing_metadata(self) -> Any: ...
    def abort(self, code: grpc.StatusCode, details: str) -> Any: ...
    def abort_with_status(self, status: grpc.Status) -> Any: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def code(self) -> grpc.StatusCode | None: ...
    def details(self) -> bytes | None: ...
    def disable_next_message_compression(self) -> None: ...
    def is_active(self) -> bool: ...
    def time_remaining(self) -> float: ...
    def cancel(self) -> None: ...
    def add_callback(self, callback: Callable[[], None]) -> bool: ...
    def _final_code(self) -> int | None:
        """Return the number of the status that the call has ended with; None while it runs."""

    def _count_query(self, nanoseconds: int, /) -> None:
        """Count a query to a database, for the access log."""

@final
class RequestIterator:
    """Iterates over the requests of a call; waits for each without the GIL."""

    def __iter__(self) -> RequestIterator: ...
    def __next__(self) -> Any: ...

@final
class RowEncoder:
    """Encodes rows, tuples of a query's columns, as messages of one class."""

    def fill(
        self, message_class: Any, beginning: bytes, number: int, rows: Iterable[tuple[Any, ...]]
    ) -> SerializedMessage:
        """Make a message that has the rows in a repeated field.

        Args:
            message_class: The class of the message that is made.
            beginning: Its other fields, serialized.
            number: The repeated field.
            rows: Read to the end.
        """

    def stream(self, rows: Iterable[tuple[Any, ...]], /) -> RowIterator:
        """Iterate over the rows, each as a message of its own."""

@final
class RowIterator:
    """Iterates over a query's rows, each as a message: what feeds a server stream."""

    def __iter__(self) -> RowIterator: ...
    def __next__(self) -> Any:
        """Return a `SerializedMessage`, in the place of a message."""

    def close(self) -> None:
        """End the iteration, and the query behind it."""

@final
class SerializedMessage:
    """A message that is serialized already; the engine sends it as it is."""

    def __bytes__(self) -> bytes: ...
    def __len__(self) -> int: ...
    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Return what is sent, as a message does."""

    def message(self) -> Any:
        """Parse it into a message of its class, as a test asks for it."""

@final
class AsyncServicerContext:
    """A call, as its async servicer sees it; a virtual subclass of `grpc.aio.ServicerContext`.

    What begins with an underscore is for `django_grpc.engine.coroutines`. None of it waits.
    """

    def read(self) -> Coroutine[Any, Any, Any]: ...
    def write(self, message: Any) -> Coroutine[Any, Any, None]: ...
    def send_initial_metadata(self, initial_metadata: Any) -> Coroutine[Any, Any, None]: ...
    def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> Coroutine[Any, Any, None]: ...
    def abort_with_status(self, status: Any) -> Coroutine[Any, Any, None]: ...
    def invocation_metadata(self) -> tuple[Any, ...]: ...
    def set_trailing_metadata(self, trailing_metadata: Iterable[Any]) -> None: ...
    def trailing_metadata(self) -> Any: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def code(self) -> grpc.StatusCode | None: ...
    def set_details(self, details: str) -> None: ...
    def details(self) -> str: ...
    def set_compression(self, compression: grpc.Compression) -> None: ...
    def disable_next_message_compression(self) -> None: ...
    def peer(self) -> str: ...
    def peer_identities(self) -> list[bytes] | None: ...
    def peer_identity_key(self) -> str | None: ...
    def auth_context(self) -> dict[str, list[bytes]]: ...
    def time_remaining(self) -> float | None: ...
    def is_active(self) -> bool: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def add_done_callback(self, callback: Callable[[Any], object]) -> None: ...
    def _final_code(self) -> int | None:
        """Return the number of the status that the call has ended with; None while it runs."""

    def _count_query(self, nanoseconds: int, /) -> None:
        """Count a query to a database, for the access log."""

    def _begin(self) -> None:
        """Say that the task runs; may be called more than once."""

    def _request(self) -> Any:
        """Return what the method gets: a request, an iterator of them, or PENDING."""

    def _receive(self) -> Any:
        """Return the next request, EOF, or PENDING."""

    def _send(self, response: Any, /) -> bool:
        """Send a response; False when the next one should wait for `_set_writer`."""

    def _answer(self, response: Any, /) -> None:
        """Send the only response and the status."""

    def _finish(self) -> None:
        """End the call with the status that was set, by default OK."""

    def _fail(self, details: str, /) -> None:
        """End the call with the code that was set, by default UNKNOWN."""

    def _abort(self, error: BaseException, code: Any, details: str, trailing_metadata: Any) -> None:
        """End the call with a status; `error` is what is about to be raised."""

    def _abort_error(self) -> BaseException | None: ...
    def _send_initial_metadata(self, initial_metadata: Any, /) -> None: ...
    def _set_reader(self, future: asyncio.Future[None], /) -> None:
        """Have a future set when there is a request, or no more of them."""

    def _set_writer(self, future: asyncio.Future[None], /) -> None:
        """Have a future set when a response is welcome."""

    def _forget(self, future: asyncio.Future[None], /) -> None:
        """Drop a future that nobody waits for any more."""

    def _is_cancelled(self) -> bool:
        """Whether the task was told that the call has ended."""

    def _path(self) -> str: ...
    def _resolver(self) -> _AsyncResolver: ...
    def _carry(self, variables: dict[ContextVar[Any], Any]) -> None: ...
    def _bind(
        self, handler: MethodHandler, /
    ) -> tuple[Callable[[AsyncServicerContext, _Behavior], Awaitable[None]], _Behavior] | None:
        """Take a method handler: what runs it, or None when a worker does now."""

    def _done(self) -> list[Callable[[Any], object]] | None:
        """Say that nothing of the servicer runs any more; return the callbacks to call."""

@final
class AsyncRequestIterator:
    """Iterates over the requests of a call, on its asyncio loop."""

    def __aiter__(self) -> AsyncIterator[Any]: ...
    def __anext__(self) -> Awaitable[Any]: ...

@final
class Server:
    """The engine's server; `django_grpc.engine` dresses it as a `grpc.Server`."""

    def add_method(self, path: str, handler: MethodHandler) -> None:
        """Register a method that always runs the same handler."""

    def add_resolved_method(
        self, path: str, request_streaming: bool, response_streaming: bool
    ) -> None:
        """Register a path whose handler the resolver gives, call by call."""

    def set_resolver(
        self,
        resolver: _Resolver | _AsyncResolver,
        fallback: bool,
        asynchronous: bool,
    ) -> None:
        """Set who gives the handlers that have to be asked for.

        Args:
            resolver: Gets path and invocation metadata, on the call's worker.
            fallback: Whether it is asked for paths that nobody registered too.
            asynchronous: Whether it is a coroutine function; it runs on the loop then. Set before
                `add_resolved_method`.
        """

    def add_port(
        self,
        address: str,
        credentials: ServerCredentials | None,
        refresh: Callable[[], None] | None,
    ) -> int:
        """Bind an address and return its port, 1 for a Unix domain socket.

        Raises:
            OSError: The address is taken, or may not be bound.
            ValueError: The address is malformed, or the server has been started.
        """

    def set_method_limits(
        self,
        pattern: str,
        concurrency: int,
        queue: int,
        timeout_ms: int,
        max_timeout_ms: int,
        max_message: int,
        retry_after_ms: int,
    ) -> None:
        """Limit what methods may cost, of those that are added afterwards; -1: no limit."""

    def add_operations_port(self, address: str, /) -> int:
        """Bind an address for figures over HTTP, before `start`; returns the port.

        Raises:
            OSError: It cannot be bound.
            ValueError: It is no address, or the server has been started.
        """

    def adopt_connections(
        self, socket: int, released: int, credentials: ServerCredentials | None
    ) -> None:
        """Serve the connections that another process accepts and sends, from `start` on.

        While the server drains they are still taken in, and sent away, until that process closes
        its side, or half of it.

        Args:
            socket: A descriptor of a SOCK_SEQPACKET Unix socket, the server's from here on. Each
                message of it is one byte with one descriptor (SCM_RIGHTS).
            released: An eventfd, the server's from here on, that is raised by one for each of the
                connections that has gone; -1 is none.
            credentials: For TLS.

        Raises:
            ValueError: The server has been started.
        """

    def start(self) -> None:
        """Start the event loops and accept connections."""

    def drain(self, when_stopped: Callable[[], object], /) -> None:
        """Refuse new calls.

        Args:
            when_stopped: Called on the control thread when the last connection is gone.
        """

    def cancel_all_calls(self) -> None:
        """End every call with UNAVAILABLE and close every connection."""

    def cancel_all_calls_after(self, seconds: float, /) -> None:
        """Do so when seconds have passed, unless the server has stopped then."""

    def enable_health(self) -> None:
        """Answer ``grpc.health.v1.Health``."""

    def add_health_services(self, services: Iterable[str], /) -> None:
        """Make services known, as SERVING; those that are known keep their status."""

    def set_health(self, service: str, status: int) -> None:
        """Set the status of a service.

        Raises:
            ValueError: The status is none that a service can have: 0, 1 or 2.
        """

    def set_ready(self, seconds: float | None, /) -> None:
        """Be ready; with a number of seconds, for so long.

        Raises:
            ValueError: The number is negative or none.
        """

    def set_not_ready(self, reason: str, /) -> None:
        """Be not ready until `set_ready`."""

    def observe_queue(self, seconds: float, /) -> None:
        """Be not ready while a call has waited for Python for longer; call it before `start`.

        Raises:
            ValueError: The number is negative or none.
        """

    def announce_shutdown(self) -> None:
        """Be not ready from now on, and serve as ever."""

    def health_problem(self) -> tuple[str, str] | None:
        """Return cause and text of why the server is not ready; None when it is."""

    def set_health_listener(self, listener: Callable[[], object], /) -> None:
        """Have a callable called, on the control thread, when that changes."""

    def surround_calls(self, surroundings: Surroundings, /) -> None:
        """Have something called before and after everything that runs for a call."""

    def run_worker(self) -> None:
        """Be a worker thread, until `stop_threads`."""

    def run_control(
        self,
        spawn_worker: Callable[[], object],
        spawn_loop: Callable[[], object],
        spawn_callbacks: Callable[[int], object],
    ) -> None:
        """Be the control thread, until `stop_threads`.

        Args:
            spawn_worker: Starts a thread whose body is `run_worker`.
            spawn_loop: Starts a thread with a loop, which calls `attach_loop` or `lose_loop`;
                called when a call of an async method comes and there is no loop.
            spawn_callbacks: Starts a thread whose body is `run_callbacks` with the number that it
                is called with; called when there is something to call for the first time.
        """

    def run_callbacks(self, kind: int, /) -> None:
        """Call what users have given to be called, until `stop_threads`.

        Args:
            kind: 0 for callbacks of calls that have ended, 1 for what renews credentials.
        """

    def stop_threads(self) -> None:
        """End the worker threads, once their queue is empty, and the control thread."""

    def lose(self) -> None:
        """End this process, forked by code of a call, when that comes to touch its call."""

    def enable_call_log(self, sample: float, slow: float) -> None:
        """Have calls that end recorded for `next_calls`; before `start`.

        Args:
            sample: The part of them, from 0 to 1; those whose status is the server's fault always.
            slow: Seconds that one of the part takes at least.
        """

    def next_calls(self) -> tuple[list[_CallRecord], int] | None:
        """Wait for calls that have ended, without the GIL; for one thread.

        Returns:
            Some of them, and how many were dropped before; None once `close_call_log` was called
            and nothing is left.
        """

    def close_call_log(self) -> None:
        """Record no more calls."""

    def overdue_calls(self, seconds: float, /) -> list[_OverdueCall]:
        """Return calls whose servicer runs, or has run, for so long, each of them once."""

    def follow_grpc_aio(self) -> None:
        """Have ordinary methods find what they would find on grpc.aio's server."""

    def attach_loop(
        self, create_task: Callable[[Coroutine[Any, Any, None]], Any], descriptor: int
    ) -> bool:
        """Take calls for the running loop.

        Args:
            create_task: The loop's.
            descriptor: An eventfd that does not block: readable when `run_events` has something to
                do. The server's now, who closes it in `lose_loop` and `detach_loop`.

        Returns:
            Whether a loop is wanted; none is where there is one, and after `detach_loop`.
        """

    def lose_loop(self) -> None:
        """End the calls of the loop that was asked for or is attached, as it takes none any more.

        The next call asks for a loop again.
        """

    def run_events(self) -> None:
        """Start, wake and cancel calls. Called on the loop."""

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of the calls on the loop."""

    def detach_loop(self) -> None:
        """Take no more calls for any loop."""

    def statistics(self) -> dict[str, int]:
        """Return figures of calls, connections and workers."""
