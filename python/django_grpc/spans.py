"""OpenTelemetry's server spans around servicers' methods.

The names are those of the semantic conventions for gRPC, version 1.45, the first in which they are
stable: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/. This module imports the
OpenTelemetry API, which is an optional package; `django_grpc.tracing` decides whether it is used.
"""

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
import grpc.aio
from opentelemetry import context as current_context
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, Status, StatusCode

from django_grpc import __version__
from django_grpc.engine import AbortError
from django_grpc.wrapping.shapes import Behavior, Shape, inside
from django_grpc.wrapping.wrapper import is_servicers_own

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"

#: The statuses that are the server's fault, by the conventions.
SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

# Peers whose attributes are kept; a client has one for each of its connections.
_PEERS = 1024

_Metadata = Iterable[tuple[str, str | bytes]]


class CallSpans:
    """Puts a span around each call: an instrument of `django_grpc.wrapping.wrapper.SignalWrapper`.

    Spans are made by the global tracer provider, and their parents come in by the global
    propagator. Both are asked for call by call, since a project may set them late; while there is
    no provider, a call runs as if this were not here.

    Three of OpenTelemetry's environment variables are read when it is made:
    ``OTEL_SEMCONV_STABILITY_OPT_IN`` with ``rpc/dup`` adds the attributes that older conventions
    had, ``OTEL_PYTHON_GRPC_EXCLUDED_SERVICES`` names services without spans by the beginnings of
    their names. (``OTEL_SDK_DISABLED`` is the SDK's own.)
    """

    def __init__(self) -> None:
        opt_in = _listed("OTEL_SEMCONV_STABILITY_OPT_IN")
        self._has_old_names = "rpc/dup" in opt_in
        self._excluded = tuple(_listed("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES"))
        # One tuple, so that threads which change it at once leave a consistent pair.
        self._tracer: tuple[trace.TracerProvider | None, trace.Tracer | None] = (None, None)

    def __call__(self, path: str, shape: Shape, behavior: Behavior) -> Behavior:
        """Return the method with a span around it; the method itself where it shall have none."""
        name = path.removeprefix("/")
        if self._excluded and name.startswith(self._excluded):
            return behavior
        attributes: dict[str, str | int] = {"rpc.system.name": "grpc", "rpc.method": name}
        if self._has_old_names:
            service, _, _ = name.rpartition("/")
            attributes |= {"rpc.system": "grpc", "rpc.service": service}
        method = _Method(self, name, attributes, self._has_old_names)
        if shape is Shape.CALLBACK:
            return _callback(behavior, method)
        return inside(behavior, shape, method.begin)

    def tracer(self) -> trace.Tracer | None:
        """Return what makes spans; None while nobody would see them."""
        provider = trace.get_tracer_provider()
        known, tracer = self._tracer
        if provider is not known:
            tracer = _tracer_of(provider)
            self._tracer = (provider, tracer)
        return tracer


def _listed(variable: str) -> list[str]:
    return [it.strip() for it in os.environ.get(variable, "").split(",") if it.strip()]


def _tracer_of(provider: trace.TracerProvider) -> trace.Tracer | None:
    # The first stands for a provider that has not been set yet.
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    tracer = provider.get_tracer("django_grpc", __version__, schema_url=SCHEMA)
    return None if isinstance(tracer, trace.NoOpTracer) else tracer  # OTEL_SDK_DISABLED


class _Method(NamedTuple):
    """What is the same for every call of a method."""

    spans: CallSpans
    name: str
    attributes: dict[str, str | int]
    has_old_names: bool

    def begin(self, context: Any) -> "AbstractContextManager[object]":
        """Return what a call runs inside of."""
        tracer = self.spans.tracer()
        return _UNTRACED if tracer is None else _CallSpan(self, tracer, context)


_UNTRACED = contextlib.nullcontext()


class _CallSpan:
    """The span of one call, current inside a ``with``, which ends it."""

    __slots__ = ("_context", "_has_old_names", "_span", "_token")

    def __init__(self, method: _Method, tracer: trace.Tracer, context: Any) -> None:
        parent, kind = _parent(context)
        self._context = context
        self._has_old_names = method.has_old_names
        self._span = tracer.start_span(
            method.name,
            parent,
            kind,
            {**method.attributes, **_peer_attributes(context.peer())},
        )
        self._token = current_context.attach(trace.set_span_in_context(self._span, parent))

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.end(error)
        finally:
            self.leave()

    def leave(self) -> None:
        """Let it no longer be current."""
        current_context.detach(self._token)

    def end(self, error: BaseException | None = None) -> None:
        """End the span with what became of the call."""
        span = self._span
        if span.is_recording():
            if error is not None and _is_recorded(error, self._context):
                with contextlib.suppress(Exception):  # an exception's text may be one, too
                    span.record_exception(error)
            code, description = self._outcome(error)
            span.set_attribute("rpc.status_code", code.name)
            if self._has_old_names:
                span.set_attribute("rpc.grpc.status_code", code.value[0])
            if code in SERVER_ERRORS:
                span.set_attribute("error.type", code.name)
                span.set_status(Status(StatusCode.ERROR, description or None))
        span.end()

    def _outcome(self, error: BaseException | None) -> tuple[grpc.StatusCode, str]:
        """The status that the client gets, unless its answer can't be serialized after this."""
        context = self._context
        if isinstance(error, AbortError | grpc.aio.AbortError):
            return _code(context, grpc.StatusCode.UNKNOWN), _details(context)
        # A context that an interceptor has put around ours may lack this.
        ending = getattr(context, "_final_code", _unknown)()
        if ending is not None:
            return _CODES[ending], ""
        if isinstance(error, GeneratorExit) and isinstance(context, grpc.aio.ServicerContext):
            # Closed before its end, in a call that goes on: a response could not be sent.
            return _code(context, grpc.StatusCode.UNKNOWN), ""
        if error is None or isinstance(error, GeneratorExit):  # an ordinary one yielded None
            return _code(context, grpc.StatusCode.OK), _details(context)
        if isinstance(error, asyncio.CancelledError):
            return grpc.StatusCode.CANCELLED, ""
        return _code(context, grpc.StatusCode.UNKNOWN), _text(error)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _unknown() -> None:
    return None


def _parent(context: Any) -> tuple[current_context.Context, SpanKind]:
    # With a span in place already (that of an interceptor around this one) the call has its server
    # span; OpenTelemetry's own instrumentations make theirs an internal one of it then.
    if trace.get_current_span().get_span_context().is_valid:
        return current_context.get_current(), SpanKind.INTERNAL
    parent = propagate.extract(context.invocation_metadata() or (), getter=_METADATA)
    return parent, SpanKind.SERVER


class _MetadataGetter(Getter[_Metadata]):
    """Lets a propagator read metadata."""

    def get(self, carrier: _Metadata, key: str) -> list[str] | None:
        name = key.lower()
        found = [value for it, value in carrier if it == name and isinstance(value, str)]
        return found or None

    def keys(self, carrier: _Metadata) -> list[str]:
        return [key for key, _ in carrier]


_METADATA = _MetadataGetter()


@functools.lru_cache(maxsize=_PEERS)
def _peer_attributes(peer: str) -> dict[str, str | int]:
    """Read ``ipv4:127.0.0.1:50312``, ``ipv6:%5B::1%5D:50312`` or ``unix:PATH``."""
    family, _, address = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return {"network.peer.address": address} if address else {}
    host, _, port = unquote(address).rpartition(":")
    attributes: dict[str, str | int] = {"network.peer.address": host.strip("[]")}
    if port.isdecimal():
        attributes["network.peer.port"] = int(port)
    return attributes


def _is_recorded(error: BaseException, context: Any) -> bool:
    if isinstance(error, GeneratorExit | asyncio.CancelledError):
        return False  # how a servicer is told that its call has ended
    return not isinstance(error, Exception) or is_servicers_own(error, context)


def _code(context: Any, default: grpc.StatusCode) -> grpc.StatusCode:
    code = context.code()
    if code is None:
        return default
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _details(context: Any) -> str:
    details = context.details()
    return details.decode(errors="replace") if isinstance(details, bytes) else details or ""


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _callback(behavior: Behavior, method: _Method) -> Behavior:
    def call(request: Any, context: Any, send_response_callback: Callable[[Any], None]) -> None:
        tracer = method.spans.tracer()
        if tracer is None:
            behavior(request, context, send_response_callback)
            return
        span = _CallSpan(method, tracer, context)

        try:
            behavior(request, context, send_response_callback)
        except BaseException as error:
            span.end(error)
            raise
        finally:
            span.leave()
        if not context.add_callback(span.end):
            span.end()

    return call
