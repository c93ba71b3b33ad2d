"""What is put around the code of a project on threads that are started in Python."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from django_grpc.logs import GuardedLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_grpc.engine.types import Surroundings

logger = GuardedLogger("django_grpc")


@contextlib.contextmanager
def inside(surroundings: Surroundings | None) -> Iterator[None]:
    """Enter what surrounds calls, and leave it; what that raises is logged, as in the engine."""
    if surroundings is None:
        yield
        return
    _call(surroundings.enter)
    try:
        yield
    finally:
        _call(surroundings.leave)


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except BaseException:  # sys.exit() among them: the thread is needed by others
        log_exception("Exception in what surrounds a call")


def log_exception(message: str) -> None:
    """Log the exception that is being handled; what the project's log handlers raise is lost."""
    logger.exception(message)
