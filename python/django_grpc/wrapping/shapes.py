"""How methods answer, and so how whatever is put around one has to be written."""

import enum
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from typing import Any

from django_grpc.engine.coroutines import Colour, colour

Behavior = Callable[..., Any]


class Shape(enum.Enum):
    """What a servicer's method is to its caller."""

    VALUE = enum.auto()
    """Returns its only response."""

    ITERATOR = enum.auto()
    """Returns an iterator of responses, on the thread that asks for them."""

    COROUTINE = enum.auto()
    """Is awaited for its only response, or writes its responses to the context."""

    ASYNC_GENERATOR = enum.auto()
    """Yields its responses on a loop."""

    CALLBACK = enum.auto()
    """Has returned before it answers, through a callback and from whatever thread.

    grpcio's health servicer has such a method (Watch): ``experimental_non_blocking``.
    """


#: Puts something around a method: takes the path of the method (``/package.Service/Method``), its
#: shape and the method, and returns one of the same shape.
Instrument = Callable[[str, Shape, Behavior], Behavior]

_ASYNC = {
    Colour.COROUTINE: Shape.COROUTINE,
    Colour.ASYNC_GENERATOR: Shape.ASYNC_GENERATOR,
}


def shape_of(behavior: Behavior, *, response_streaming: bool) -> Shape:
    """Say which shape a method has."""
    if getattr(behavior, "experimental_non_blocking", False) is True:  # as no mock's is
        return Shape.CALLBACK
    plain = Shape.ITERATOR if response_streaming else Shape.VALUE
    return _ASYNC.get(colour(behavior), plain)


def inside(
    behavior: Behavior, shape: Shape, enter: Callable[[Any], AbstractContextManager[object]]
) -> Behavior:
    """Put a context manager around each call of a method.

    A generator's body runs in its caller's context from the first ``next`` to its end, and the
    engine runs all of a call in one context: what a manager sets there is set for the servicer's
    code between the yields, too.

    Args:
        behavior: The method.
        shape: Its shape. A method that answers through a callback is inside while it begins.
        enter: Called with the servicer's context when the method is to run.
    """
    return _INSIDE[shape](behavior, enter)


_Enter = Callable[[Any], AbstractContextManager[object]]


def _value(behavior: Behavior, enter: _Enter) -> Behavior:
    def call(request: Any, context: Any) -> Any:
        with enter(context):
            return behavior(request, context)

    return call


def _iterator(behavior: Behavior, enter: _Enter) -> Behavior:
    def call(request: Any, context: Any) -> Iterator[Any]:
        with enter(context):
            yield from behavior(request, context)

    return call


def _coroutine(behavior: Behavior, enter: _Enter) -> Behavior:
    async def call(request: Any, context: Any) -> Any:
        with enter(context):
            return await behavior(request, context)

    return call


def _async_generator(behavior: Behavior, enter: _Enter) -> Behavior:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        with enter(context):
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response

    return call


def _callback(behavior: Behavior, enter: _Enter) -> Behavior:
    def call(request: Any, context: Any, send_response_callback: Callable[[Any], None]) -> None:
        with enter(context):
            behavior(request, context, send_response_callback)

    return call


_INSIDE: dict[Shape, Callable[[Behavior, _Enter], Behavior]] = {
    Shape.VALUE: _value,
    Shape.ITERATOR: _iterator,
    Shape.COROUTINE: _coroutine,
    Shape.ASYNC_GENERATOR: _async_generator,
    Shape.CALLBACK: _callback,
}
