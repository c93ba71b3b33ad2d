"""Log handlers of a project that raise, and wait."""

import contextlib
import logging
import threading
from collections.abc import Iterator

_PATIENCE = 30.0


class OddHandler(logging.Handler):
    """Keeps records; raises what it is told to, and waits at its gate.

    Attributes:
        records: What it was given, with the name of the thread that gave it as ``by``.
        failure: What it raises; None is nothing.
        entered: Set when it has been given something.
        gate: Where it waits; open at first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.failure: BaseException | None = None
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def emit(self, record: logging.LogRecord) -> None:
        record.by = threading.current_thread().name
        self.records.append(record)
        self.entered.set()
        if not self.gate.wait(_PATIENCE):
            raise TimeoutError("the gate stayed shut")
        if self.failure is not None:
            raise self.failure

    @property
    def texts(self) -> list[str]:
        return [it.getMessage() for it in self.records]


@contextlib.contextmanager
def odd_handler(name: str) -> Iterator[OddHandler]:
    """Give a logger such a handler; its level is INFO meanwhile."""
    handler, logger = OddHandler(), logging.getLogger(name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield handler
    finally:
        handler.gate.set()
        logger.removeHandler(handler)
        logger.setLevel(level)
