"""What the tests of the Django side share: servers on loopback ports, in this process."""

import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

# The longest that any test waits for something that ought to happen.
PATIENCE = 20


@pytest.fixture
def started() -> Iterator[Callable[[Any], grpc.Channel]]:
    """Start a server on a free loopback port: called with it, returns a channel to it."""
    with ExitStack() as at_end:

        def start(server: Any) -> grpc.Channel:
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            at_end.callback(lambda: server.stop(0).wait(PATIENCE))
            return at_end.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))

        yield start


@pytest.fixture
def engine_server() -> Iterator[Callable[..., Any]]:
    """Make servers of the engine, without Django's settings."""
    from django_grpc import engine

    with ExitStack() as at_end:

        def make(max_workers: int = 4, **arguments: Any) -> Any:
            pool = at_end.enter_context(ThreadPoolExecutor(max_workers=max_workers))
            return engine.server(pool, **arguments)

        yield make


class SignalLog:
    """Notes the signals of calls, in the order in which they are sent."""

    def __init__(self) -> None:
        self._notes: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    def on_started(self, **kwargs: Any) -> None:
        self._notes.put(("started", kwargs))

    def on_finished(self, **kwargs: Any) -> None:
        self._notes.put(("finished", kwargs))

    def on_exception(self, **kwargs: Any) -> None:
        self._notes.put(("exception", kwargs))

    def until_finished(self) -> list[str]:
        """Wait for the end of the call, and return the names of the signals so far."""
        return [name for name, _ in self.details_until_finished()]

    def details_until_finished(self) -> list[tuple[str, dict[str, Any]]]:
        notes = [self._notes.get(timeout=PATIENCE)]
        while notes[-1][0] != "finished":
            notes.append(self._notes.get(timeout=PATIENCE))
        return notes

    def is_empty(self) -> bool:
        return self._notes.empty()


@pytest.fixture
def signal_log() -> Iterator[SignalLog]:
    """The signals that are sent during a test."""
    from django_grpc import signals

    log = SignalLog()
    connections = (
        (signals.grpc_request_started, log.on_started),
        (signals.grpc_request_finished, log.on_finished),
        (signals.grpc_got_request_exception, log.on_exception),
    )
    for signal, receiver in connections:
        signal.connect(receiver)
    yield log
    for signal, receiver in connections:
        signal.disconnect(receiver)
