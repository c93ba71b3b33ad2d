"""Servicer contexts without a call behind them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc import RpcError, ServicerContext, StatusCode

from django_grpc import _engine
from django_grpc.engine import Metadatum
from django_grpc.engine.types import AsyncServicerContext

MetadataType = Sequence[tuple[str, Any]]

#: Seconds that `time_remaining()` reports unless `set_time_remaining()` says otherwise.
DEFAULT_TIME_REMAINING = 60.0

#: What `peer()` reports unless `set_peer()` says otherwise.
DEFAULT_PEER = "ipv4:127.0.0.1:50051"

_ERROR_FORMAT = (
    "<{} of RPC that terminated with:\n"
    "\tstatus = {}\n"
    '\tdetails = "{}"\n'
    '\tdebug_error_string = "{}"\n'
    ">"
)


class _FakeCall:
    """What the fake contexts of both kinds share: what the test sets, what the servicer did.

    Attributes:
        abort_status: The status code; UNKNOWN until there is another.
        abort_message: The details of the status.
        abort_called: Whether `abort` or `abort_with_status` was called.
        cancelled_by_servicer: Whether the servicer called `cancel`.
        initial_metadata: What the servicer sent as initial metadata, None before it did.
        compression: What the servicer set, None before it did.
        compression_disabled: How often `disable_next_message_compression` was called.
    """

    # As in a call: None before there are some, "" with grpc.aio.
    _no_details: str | None = None

    def __init__(self) -> None:
        self._invocation_metadata: MetadataType = ()
        self._time_remaining: float | None = DEFAULT_TIME_REMAINING
        self._peer = DEFAULT_PEER
        self._peer_identities: tuple[bytes, ...] | None = None
        self._peer_identity_key: str | None = None
        self._auth_context: dict[str, list[bytes]] = {}
        self._forget()

    def _forget(self) -> None:
        self.abort_status: StatusCode = StatusCode.UNKNOWN
        self.abort_message: str = ""
        self._code: Any = None
        self._details: str | None = None
        self.abort_called: bool = False
        self.cancelled_by_servicer: bool = False
        self.initial_metadata: MetadataType | None = None
        self.compression: grpc.Compression | None = None
        self.compression_disabled: int = 0
        self._trailing_metadata: MetadataType = ()
        self._is_over = False

    @property
    def abort_code(self) -> StatusCode:
        """The same as `abort_status`."""
        return self.abort_status

    @abort_code.setter
    def abort_code(self, value: StatusCode) -> None:
        self.abort_status = value

    @property
    def aborted(self) -> bool:
        """The same as `abort_called`."""
        return self.abort_called

    @aborted.setter
    def aborted(self, value: bool) -> None:
        self.abort_called = value

    def clear(self) -> None:
        """Forget what the servicer did, and keep what the test set, for another call."""
        self._forget()

    # What the test sets.

    def set_invocation_metadata(self, items: MetadataType) -> None:
        """Set the metadata that the client sends.

        Raises:
            TypeError: They are no pairs of a key and a value, as a dictionary is none.
            ValueError: A key or a value is one that gRPC does not send.
        """
        self._invocation_metadata = tuple(itertools.starmap(Metadatum, _checked(items)))

    def set_time_remaining(self, seconds: float | None) -> None:
        """Set the seconds until the deadline; None for a call without one."""
        if seconds is not None and not isinstance(seconds, int | float):
            raise TypeError(f"The time until the deadline is in seconds, not {seconds!r}.")
        self._time_remaining = seconds

    def set_peer(self, peer: str) -> None:
        """Set the client's address as gRPC writes it, for example `ipv4:10.0.0.7:41234`."""
        if not isinstance(peer, str):
            raise TypeError(f"A peer is a text as 'ipv4:10.0.0.7:41234', not {peer!r}.")
        self._peer = peer

    def set_auth_context(
        self,
        auth_context: Mapping[str, Iterable[bytes]],
        peer_identity_key: str | None = None,
    ) -> None:
        """Set what TLS says about the client.

        Args:
            auth_context: Properties as gRPC names them, for example
                `{"x509_common_name": [b"billing"]}`.
            peer_identity_key: The property that identifies the client; without one it has no
                identities.
        """
        self._auth_context = {key: list(values) for key, values in auth_context.items()}
        self._peer_identity_key = peer_identity_key
        self._peer_identities = (
            None if peer_identity_key is None else tuple(self._auth_context[peer_identity_key])
        )

    # What the test asks.

    def get_trailing_metadata(self, key: str) -> Any:
        """Return the last value of a key of the trailing metadata.

        Raises:
            KeyError: There is none.
        """
        return dict(self._trailing_metadata)[key]

    # What the servicer calls.

    def invocation_metadata(self) -> MetadataType:
        """Return the metadata that the test set."""
        return self._invocation_metadata

    def peer(self) -> str:
        """Return the client's address."""
        return self._peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the client's identities, None for one that did not authenticate."""
        return self._peer_identities

    def peer_identity_key(self) -> str | None:
        """Return the name of the property that identifies the client."""
        return self._peer_identity_key

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS says about the client; nothing, unless the test set it."""
        return self._auth_context

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, None without one."""
        return self._time_remaining

    def set_compression(self, compression: grpc.Compression) -> None:
        """Note the compression of the call; what is none is a ValueError."""
        if compression not in (*grpc.Compression,):
            raise ValueError("compression must be a grpc.Compression")
        self.compression = compression

    def disable_next_message_compression(self) -> None:
        """Note that the next message is not to be compressed."""
        self.compression_disabled += 1

    def set_trailing_metadata(self, items: MetadataType) -> None:
        """Set the trailing metadata; what was set before is replaced.

        Raises:
            TypeError, ValueError: It can't be sent.
        """
        self._trailing_metadata = _checked(items)

    def trailing_metadata(self) -> MetadataType:
        """Return the trailing metadata."""
        return self._trailing_metadata

    def set_code(self, code: StatusCode) -> None:
        """Set the status code; the client gets UNKNOWN for what is none."""
        self._code = code
        self.abort_status = code if isinstance(code, StatusCode) else StatusCode.UNKNOWN

    def set_details(self, details: str) -> None:
        """Set the details of the status; what is no text is a TypeError."""
        self._details = self.abort_message = _text(details)

    def code(self) -> StatusCode | None:
        """Return the status code that was set, None before one was."""
        code: StatusCode | None = self._code
        return code

    def details(self) -> str | None:
        """Return the details of the status that were set; before, what a call of the kind has."""
        return self._no_details if self._details is None else self._details

    def _note_initial_metadata(self, initial_metadata: MetadataType) -> None:
        if self.initial_metadata is not None:
            # As grpcio says it.
            raise ValueError("Initial metadata no longer allowed!")
        self.initial_metadata = _checked(initial_metadata)

    def _note_abort(self, code: StatusCode, details: str) -> str:
        """Note an abort; return the text of the error to raise."""
        details = _text(details)
        if code is StatusCode.OK:
            # grpcio's rule: a call that is aborted was not OK.
            code, details = StatusCode.UNKNOWN, ""
        elif not isinstance(code, StatusCode):
            code = StatusCode.UNKNOWN  # which is what the client gets
        self.abort_called = True
        self.abort_status = self._code = code
        self.abort_message = self._details = details
        debug = (
            f'UNKNOWN:Error received from peer  {{grpc_message:"{details}", '
            f'grpc_status:{code.value[0]}, created_time:"{datetime.now(UTC)}"}}'
        )
        return _ERROR_FORMAT.format(RpcError.__name__, code, details, debug)


def _checked(items: MetadataType | None) -> MetadataType:
    """Refuse metadata that a call would refuse."""
    items = tuple(items or ())
    _engine.check_metadata(items)
    return tuple((key, value) for key, value in items)


def _text(details: str | bytes) -> str:
    encode = getattr(details, "encode", None)  # Django's lazy text has it, too
    encoded = encode("utf-8") if encode else details
    if not isinstance(encoded, bytes):
        raise TypeError("the details of a status must be text")
    return encoded.decode(errors="replace")


class FakeServicerContext(_FakeCall, ServicerContext):  # type: ignore[misc]
    """A `grpc.ServicerContext` for calling a servicer's method directly.

        context = FakeServicerContext()
        context.set_invocation_metadata([("authorization", "token")])
        response = Greeter().SayHello(HelloRequest(name="you"), context)
        assert context.get_trailing_metadata("x-took") == "3"

    `abort` raises `grpc.RpcError` and leaves code and details in `abort_status` and
    `abort_message`. Every other method of `grpc.ServicerContext` does what it does in a call, as
    far as there is one. For async methods use `FakeAsyncServicerContext`.
    """

    def _forget(self) -> None:
        super()._forget()
        self._callbacks: list[Callable[[], None]] = []

    def finish(self) -> None:
        """End the call: from here on it is not active, and its callbacks are called."""
        self._is_over = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def abort(self, code: StatusCode, details: str) -> NoReturn:
        """End the call with a status; raises `grpc.RpcError`."""
        text = self._note_abort(code, details)
        self.finish()
        raise RpcError(text)

    def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with a `grpc.Status`; raises `grpc.RpcError`."""
        self.set_trailing_metadata(status.trailing_metadata or ())
        self.abort(status.code, status.details)

    def send_initial_metadata(self, initial_metadata: MetadataType) -> None:
        """Note the initial metadata; a second time it is a ValueError."""
        self._note_initial_metadata(initial_metadata)

    def is_active(self) -> bool:
        """Return whether the call was neither aborted nor cancelled nor finished."""
        return not self._is_over

    def cancel(self) -> None:
        """Cancel the call."""
        if self._is_over:
            return
        self.cancelled_by_servicer = True
        self.abort_status = StatusCode.CANCELLED
        self.finish()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have a function called at the end of the call; return False if that is past."""
        if self._is_over:
            return False
        self._callbacks.append(callback)
        return True


# The stubs lack it.
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]


class _FakeAbortError(grpc.aio.AbortError, RpcError):
    """What an aborted call raises: grpc.aio's error, and the one of `FakeServicerContext`."""


class FakeAsyncServicerContext(_FakeCall, AsyncServicerContext):  # type: ignore[misc]
    """A `grpc.aio.ServicerContext` for calling an async servicer's method directly.

    `abort` raises `grpc.aio.AbortError`, which here is a `grpc.RpcError` too.

    Args:
        requests: What `read()` gives, one after the other, and then `grpc.aio.EOF`.

    Attributes:
        written: The messages that the servicer wrote.
    """

    _no_details = ""

    def __init__(self, requests: Iterable[Any] | AsyncIterable[Any] = ()) -> None:
        super().__init__()
        source: Any = requests
        if not hasattr(source, "__aiter__") and not hasattr(source, "__iter__"):
            raise TypeError(f"requests must be a list of messages, not {source!r}.")
        self._requests: Any = aiter(source) if hasattr(source, "__aiter__") else iter(source)

    def _forget(self) -> None:
        super()._forget()
        self.written: list[Any] = []
        self._done_callbacks: list[Callable[[Any], None]] = []

    async def read(self) -> Any:
        """Return the next request, or `grpc.aio.EOF`."""
        if hasattr(self._requests, "__anext__"):
            return await anext(self._requests, _EOF)
        return next(self._requests, _EOF)

    async def write(self, message: Any) -> None:
        """Note a response."""
        if self._is_over:
            raise grpc.aio.UsageError("RPC already finished.")
        self.written.append(message)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Note the initial metadata; a second time it is a ValueError."""
        self._note_initial_metadata(initial_metadata)

    async def abort(
        self,
        code: StatusCode,
        details: str = "",
        trailing_metadata: Any = (),
    ) -> NoReturn:
        """End the call with a status; raises `grpc.aio.AbortError`."""
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        text = self._note_abort(code, details)
        self.finish()
        raise _FakeAbortError(text)

    async def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with a `grpc.Status`; raises `grpc.aio.AbortError`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def finish(self) -> None:
        """End the call: from here on it is done, and its callbacks are called."""
        self._is_over = True
        callbacks, self._done_callbacks = self._done_callbacks, []
        for callback in callbacks:
            callback(self)

    def cancel(self) -> bool:
        """Cancel the call, as a client does; return False if it is over."""
        if self._is_over:
            return False
        self.cancelled_by_servicer = True
        self.abort_status = StatusCode.CANCELLED
        self.finish()
        return True

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        return self.cancelled_by_servicer

    def done(self) -> bool:
        """Return whether the call is over."""
        return self._is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have a function called with this context at the end of the call."""
        if self._is_over:
            callback(self)
        else:
            self._done_callbacks.append(callback)


__all__ = [
    "DEFAULT_PEER",
    "DEFAULT_TIME_REMAINING",
    "FakeAsyncServicerContext",
    "FakeServicerContext",
    "MetadataType",
]
