"""What a server answers, for people to read."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool

from django_grpc.engine.health import SERVICE_NAME
from django_grpc.health.descriptor import health_file

if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]  # generic in its stubs only
else:
    MethodHandler = grpc.RpcMethodHandler


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodDescription:
    """One method that a server answers, for people to read.

    Attributes:
        path: ``/package.Service/Method``.
        kind: ``unary_unary``, ``unary_stream``, ``stream_unary`` or ``stream_stream``.
        request: Full name of the request's message type; ``?`` if it can't be known.
        response: The same for the response.
        servicer: Dotted path of the Python method behind it.
        name: The Python method's name.
        parameters: The names of its parameters, without ``self``.
        is_implemented: Whether it is something else than generated code's placeholder.
    """

    path: str
    kind: str
    request: str
    response: str
    servicer: str
    name: str
    parameters: tuple[str, ...]
    is_implemented: bool

    def __str__(self) -> str:
        takes, answers = self.kind.split("_")
        request = f"stream {self.request}" if takes == "stream" else self.request
        response = f"stream {self.response}" if answers == "stream" else self.response
        note = "" if self.is_implemented else " NOT IMPLEMENTED"
        return (
            f"{self.path}: {self.name}({', '.join(self.parameters)}) "
            f"{self.kind} ({request}) -> ({response}) {self.servicer}{note}"
        )


def describe(server: Any) -> Iterator[MethodDescription]:
    """Describe every method of a server, sorted by path.

    Args:
        server: What `django_grpc.engine.server` returns, or anything with its `method_handlers()`.
    """
    descriptions = [_describe(path, handler) for path, handler in server.method_handlers().items()]
    health = getattr(server, "health", None)
    if health is not None and health.is_served:
        descriptions += _describe_health()
    yield from sorted(descriptions, key=lambda it: it.path)


def _describe_health() -> Iterator[MethodDescription]:
    """Describe the methods that no Python is behind."""
    service = health_file().service[0]
    for method in service.method:
        yield MethodDescription(
            path=f"/{SERVICE_NAME}/{method.name}",
            kind="unary_stream" if method.server_streaming else "unary_unary",
            request=method.input_type.removeprefix("."),
            response=method.output_type.removeprefix("."),
            servicer="django_grpc.health",
            name=method.name,
            parameters=("request",),
            is_implemented=True,
        )


def _describe(path: str, handler: MethodHandler) -> MethodDescription:
    kind = "_".join(
        "stream" if streams else "unary"
        for streams in (handler.request_streaming, handler.response_streaming)
    )
    method = _servicers_method(getattr(handler, kind))
    request, response = _message_types(path, handler)
    return MethodDescription(
        path=path,
        kind=kind,
        request=request,
        response=response,
        servicer=_dotted_path(method),
        name=_name(method),
        parameters=_parameters(method),
        is_implemented=not _is_placeholder(method),
    )


def _servicers_method(behavior: Callable[..., Any]) -> Callable[..., Any]:
    """Look beneath the wrappers for the servicer's bound method, or the innermost function."""
    while not inspect.ismethod(behavior) and hasattr(behavior, "__wrapped__"):
        behavior = behavior.__wrapped__
    return behavior


def _name(method: Callable[..., Any]) -> str:
    return getattr(method, "__name__", type(method).__name__)


def _dotted_path(method: Callable[..., Any]) -> str:
    if inspect.ismethod(method):
        owner = method.__self__ if inspect.isclass(method.__self__) else type(method.__self__)
        return f"{owner.__module__}.{owner.__qualname__}.{_name(method)}"
    of = method if hasattr(method, "__qualname__") else type(method)
    return f"{of.__module__}.{of.__qualname__}"


def _parameters(method: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(method).parameters)
    except (TypeError, ValueError):  # written in C, without a signature
        return ()


def _is_placeholder(method: Callable[..., Any]) -> bool:
    """Whether the method is inherited from generated code, where it answers UNIMPLEMENTED."""
    return (getattr(inspect.unwrap(method), "__module__", "") or "").endswith("_pb2_grpc")


def _message_types(path: str, handler: MethodHandler) -> tuple[str, str]:
    try:
        found = descriptor_pool.Default().FindMethodByName(path.removeprefix("/").replace("/", "."))
    except KeyError:  # its generated code was not imported, or it has none
        return (
            _codec_type(handler.request_deserializer),
            _codec_type(handler.response_serializer),
        )
    return found.input_type.full_name, found.output_type.full_name


def _codec_type(codec: Callable[..., Any] | None) -> str:
    if codec is None:
        return "bytes"
    # Message.FromString is bound to its class. SerializeToString belongs to all messages.
    descriptor = getattr(getattr(codec, "__self__", None), "DESCRIPTOR", None)
    return getattr(descriptor, "full_name", "?")
