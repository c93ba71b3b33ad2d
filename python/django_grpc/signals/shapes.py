"""How methods answer, and so how whatever is put around one has to be written."""

import enum
from collections.abc import Callable
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
    if getattr(behavior, "experimental_non_blocking", False):
        return Shape.CALLBACK
    plain = Shape.ITERATOR if response_streaming else Shape.VALUE
    return _ASYNC.get(colour(behavior), plain)
