"""Log lines that keep nobody from what must happen: the project's handlers may raise, or wait."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    #: Takes a record, and the logger that is to handle it, to another thread; False if it can't.
    HandOver = Callable[[logging.Logger, logging.LogRecord], bool]

_thread = threading.local()

# The threads that are inside the project's handlers.
_writing: set[int] = set()


class GuardedLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose calls raise nothing: what filters and handlers raise costs the line.

    It goes to standard error, as what `logging.Handler.handleError` writes. That is so for
    `sys.exit()`, too. What passes is the KeyboardInterrupt of a signal, which comes on the main
    thread wherever that is.
    """

    def __init__(self, name: str) -> None:
        """Log as `logging.getLogger(name)` does."""
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line; all the other methods do it by this one."""
        with guarded():
            hand_over: HandOver | None = getattr(_thread, "hand_over", None)
            if hand_over is None:
                self.logger.log(level, msg, *args, stacklevel=2, **kwargs)
            elif self.logger.isEnabledFor(level):
                _Relay(self.logger, hand_over).log(level, msg, *args, stacklevel=2, **kwargs)


class _Relay(logging.Logger):
    """Makes the records of a logger, and has another thread handle them."""

    def __init__(self, logger: logging.Logger, hand_over: HandOver) -> None:
        super().__init__(logger.name)
        self._logger = logger
        self._hand_over = hand_over

    def handle(self, record: logging.LogRecord) -> None:
        if not self._hand_over(self._logger, record):
            self._logger.handle(record)


def relieve_this_thread(hand_over: HandOver) -> None:
    """Have the lines of guarded loggers handled elsewhere, from now on, that this thread writes."""
    _thread.hand_over = hand_over


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Write down what the project's filters and handlers raise, as `GuardedLogger` says."""
    thread = threading.get_ident()
    _writing.add(thread)
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and thread == threading.main_thread().ident:
            raise
        if logging.raiseExceptions:
            with contextlib.suppress(BaseException):
                traceback.print_exception(error, file=sys.stderr)
    finally:
        _writing.discard(thread)


def are_under_way() -> bool:
    """Whether a handler has not returned: Python's own end would wait for it."""
    return bool(_writing)


# Exceptions are the project's, and so are their classes: whatever is asked of one may raise.


def text_of(error: BaseException) -> str:
    """Return `str(error)`; nothing, where its `__str__` raises."""
    try:
        return str(error)
    except BaseException:
        return ""


def class_name_of(error: BaseException) -> str:
    """Return the name of the exception's class."""
    try:
        return str(type(error).__name__)
    except BaseException:
        return "<unprintable>"


def exc_info_of(
    error: BaseException,
) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return an exception as logging takes it without asking it whether it is true."""
    return type(error), error, BaseException.__getattribute__(error, "__traceback__")
