"""What the tests of the Django side share: servers on loopback ports, in this process."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from harness import PATIENCE, ServerProcess, SignalLog

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

# A shell has what it runs in the background ignore it, and so would the servers that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    for sent, receiver in connections:
        sent.connect(receiver)
    yield log
    for sent, receiver in connections:
        sent.disconnect(receiver)


@pytest.fixture
def start(tmp_path):
    """Start `grpcserver` processes; they are killed at the end of the test if they still run."""
    processes = []

    def start(*arguments, environment=None, script=None, **setting):
        setting = {"servicers": ["sampleapp.servicer.grpc_hook"], "host": "127.0.0.1", **setting}
        process = ServerProcess(
            tmp_path, *arguments, setting=setting, script=script, **(environment or {})
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.end()


@pytest.fixture
def like_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SQLite stand for databases that are asked to close what was read in part."""
    monkeypatch.setattr("django_grpc.hygiene.cursors._is_within_process", lambda connection: False)


@pytest.fixture
def databases_allowed(django_db_blocker: Any) -> Iterator[None]:
    """Let a test use connections without the test database: Django's stock receivers do."""
    with django_db_blocker.unblock():
        yield
