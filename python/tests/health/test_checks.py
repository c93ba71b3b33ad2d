"""The readiness checks, and the thread that runs them."""

import gc
import logging
import queue
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import DatabaseError, connection, connections
from django.db.backends.sqlite3.base import Database, DatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from harness import PATIENCE
from log_handlers import odd_handler

from django_grpc.health import NotReady, checks
from django_grpc.health.monitor import ReadinessMonitor
from django_grpc.hygiene import held_connections

from .support import NOT_SERVING, SERVING


@pytest.mark.django_db
def test_databases_that_answer_pass():
    checks.databases()


@pytest.mark.django_db
def test_database_that_does_not_answer_is_named(monkeypatch):
    def refuse():
        raise DatabaseError("connection refused\nby tests")

    monkeypatch.setattr(connection, "cursor", refuse)
    with pytest.raises(NotReady, match="the database 'default' does not answer: connection"):
        checks.databases()


def test_project_without_database_is_ready(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "django.db.backends.dummy")
    checks.databases()


@pytest.fixture
def migrations():
    """The check, as it is in a new process."""
    return type(checks.migrations)()


@pytest.mark.django_db
def test_migrations_that_are_applied_pass_and_are_not_looked_at_again(
    migrations, django_assert_num_queries
):
    migrations()
    with django_assert_num_queries(0):
        migrations()


@pytest.mark.django_db
def test_migrations_that_are_missing_are_named(migrations):
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("sampleapp", "0001_initial")
    with pytest.raises(NotReady, match=r"migrations are not applied: sampleapp\.0001_initial$"):
        migrations()
    recorder.record_applied("sampleapp", "0001_initial")
    migrations()


class Check:
    """A check whose outcome a test sets."""

    def __init__(self):
        self.failure = None
        self.answer = None
        self.entered = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def __call__(self):
        self.entered.set()
        assert self.release.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        return self.answer


@pytest.fixture
def checked(serve):
    """Start a server with one check, named "mine"."""
    check = Check()

    def start(**timing):
        monitor = ReadinessMonitor(
            {"mine": check}, **{"interval": 0.05, "timeout": PATIENCE, **timing}
        )
        server, _, probe = serve(health={"monitor": monitor})
        return server, check, probe

    yield start
    check.release.set()


@pytest.fixture
def passing(checked):
    """A server whose check passes, and a client that watches its health."""
    server, check, probe = checked()
    probe.wait_for(SERVING)
    watch = probe.watch()
    assert watch.next() == SERVING
    yield server, check, watch
    watch.cancel()


def test_server_is_not_ready_before_its_checks_have_passed(checked, serve):
    check = Check()
    check.release.clear()
    monitor = ReadinessMonitor({"mine": check}, interval=0.05, timeout=PATIENCE)
    server, _, probe = serve(health={"monitor": monitor})
    watch = probe.watch()
    assert watch.next() == NOT_SERVING
    assert server.health.problem == ("checks", "the readiness checks have not passed yet")
    check.release.set()
    assert watch.next() == SERVING
    watch.cancel()


def test_check_that_fails_is_told_and_logged_when_it_changes(checked, caplog):
    caplog.set_level("INFO", "django_grpc.health")
    server, check, probe = checked()
    probe.wait_for(SERVING)
    watch = probe.watch()
    assert watch.next() == SERVING
    check.failure = NotReady("no\n  index")
    assert watch.next() == NOT_SERVING
    assert server.health.problem == ("checks", "the check mine failed: no index")
    for _ in range(3):  # it is not logged again
        check.entered.clear()
        assert check.entered.wait(PATIENCE)
    check.failure = ZeroDivisionError("by zero")
    while "ZeroDivisionError" not in server.health.problem.text:
        check.entered.clear()
        assert check.entered.wait(PATIENCE)
    check.failure = None
    assert watch.next() == SERVING
    server.stop(0).wait(PATIENCE)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "The readiness check mine failed: no index"),
        ("WARNING", "The readiness check mine failed: ZeroDivisionError: by zero"),
        ("INFO", "The readiness check mine passes again"),
    ]
    watch.cancel()


def test_every_check_is_run_and_each_failure_told(serve):
    def fail():
        raise NotReady("one")

    def fail_too():
        raise NotReady("two")

    monitor = ReadinessMonitor(
        {"a": fail, "b": lambda: None, "c": fail_too}, interval=0.05, timeout=PATIENCE
    )
    server, _, _ = serve(health={"monitor": monitor})
    expected = "the check a failed: one; the check c failed: two"
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if server.health.problem.text == expected:
            break
        pause.wait(0.01)
    assert server.health.problem == ("checks", expected)


class UnspeakableError(Exception):
    def __str__(self):
        raise ValueError("no text")


async def _coroutine():
    raise AssertionError


def _generator():
    yield


async def _async_generator():
    yield


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(1), "SystemExit: 1"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("x"), "GeneratorExit: x"),
        (UnspeakableError(), "UnspeakableError"),
    ],
)
def test_whatever_a_check_raises_is_a_failure_and_does_not_end_the_monitor(passing, error, text):
    server, check, watch = passing
    check.failure = error
    assert watch.next() == NOT_SERVING
    assert server.health.problem == ("checks", f"the check mine failed: {text}")
    check.failure = None
    assert watch.next() == SERVING


@pytest.mark.parametrize("check", [_coroutine, _generator, _async_generator])
@pytest.mark.filterwarnings("error")
def test_check_whose_code_has_not_run_has_failed(check):
    told = Told()
    # A lambda: nobody can see before it is called what it is.
    monitor = ReadinessMonitor({"mine": lambda: check()}, interval=0.01, timeout=PATIENCE)
    monitor.start(told)
    note = told.notes.get(timeout=PATIENCE)
    while note == "ready":
        note = told.notes.get(timeout=PATIENCE)
    monitor.stop()
    assert note.startswith(
        "the check mine failed: it has not run, as it returned an object of type"
    )
    assert note.endswith(": a check must be an ordinary function")


def test_check_that_returns_false_has_failed(passing):
    server, check, watch = passing
    check.answer = False
    assert watch.next() == NOT_SERVING
    text = "it returned False: a check raises NotReady to say why"
    assert server.health.problem == ("checks", f"the check mine failed: {text}")


def test_what_fails_around_the_checks_does_not_end_the_monitor(monkeypatch):
    told = Told()
    failures = iter([SystemExit(2), ZeroDivisionError()])

    def fail_at_first():
        for failure in failures:
            raise failure

    monkeypatch.setattr("django_grpc.health.monitor.close_old_connections", fail_at_first)
    monitor = ReadinessMonitor({"mine": lambda: None}, interval=0.01, timeout=PATIENCE)
    monitor.start(told)
    notes = [told.notes.get(timeout=PATIENCE) for _ in range(3)]
    monitor.stop()
    assert notes == [
        "the readiness checks failed: SystemExit: 2",
        "the readiness checks failed: ZeroDivisionError",
        "ready",
    ]


def test_checks_run_without_the_thread_that_tells_when_they_are_late(monkeypatch):
    def refuse(timer):
        raise RuntimeError("can't start new thread")

    told = Told()
    monkeypatch.setattr(threading.Timer, "start", refuse)
    monitor = ReadinessMonitor({"mine": lambda: None}, interval=0.01, timeout=PATIENCE)
    monitor.start(told)
    assert told.notes.get(timeout=PATIENCE) == "ready"
    monitor.stop()


class Lines(logging.Handler):
    """What is logged, for a test to wait for: a line is written by whichever thread, some time."""

    def __init__(self):
        super().__init__()
        self._records = queue.SimpleQueue()

    def emit(self, record):
        self._records.put(record)

    def next(self):
        return self._records.get(timeout=PATIENCE).getMessage()


@pytest.fixture
def lines():
    handler = Lines()
    logger = logging.getLogger("django_grpc.health")
    level = logger.level
    logger.setLevel("INFO")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_check_that_hangs_fails_after_its_time(checked, lines):
    server, check, probe = checked(timeout=0.5)
    probe.wait_for(SERVING)
    watch = probe.watch()
    assert watch.next() == SERVING
    check.release.clear()
    assert watch.next() == NOT_SERVING
    assert server.health.problem.cause == "lease"
    hanging = "The server is not ready: the check mine has not ended after "
    assert lines.next().startswith(hanging)
    check.release.set()
    assert watch.next() == SERVING
    assert lines.next() == "The server is ready again"
    watch.cancel()


def test_first_check_that_hangs_is_logged(checked, serve, lines):
    check = Check()
    check.release.clear()
    monitor = ReadinessMonitor({"mine": check}, interval=0.05, timeout=0.2)
    server, _, _ = serve(health={"monitor": monitor})
    hanging = "The server is not ready: the check mine has not ended after "
    assert lines.next().startswith(hanging)
    assert server.health.problem.cause == "checks"
    check.release.set()


class Told:
    """Stands in for a server's health; notes what it is told."""

    def __init__(self):
        self.notes = queue.SimpleQueue()

    def set_ready(self, seconds=None):
        self.notes.put("ready")

    def set_not_ready(self, reason):
        self.notes.put(reason)


def test_checks_that_always_take_too_long_do_not_make_the_server_waver():
    told = Told()
    monitor = ReadinessMonitor({"slow": lambda: time.sleep(0.2)}, interval=0.01, timeout=0.1)
    monitor.start(told)
    notes = [told.notes.get(timeout=PATIENCE) for _ in range(3)]
    monitor.stop()
    assert all(re.fullmatch(r"the checks took [\d.]+ s, longer than 0\.1 s", it) for it in notes)


def test_thread_ends_with_its_server_and_closes_its_connections(serve, databases_allowed):
    closed = threading.Event()
    threads = []

    class Connection:
        """Stands in for what a check leaves open."""

        def close(self):
            closed.set()

        def close_if_unusable_or_obsolete(self):
            pass

    def use():
        threads.append(threading.current_thread())
        connections["default"] = Connection()

    monitor = ReadinessMonitor({"use": use}, interval=0.05, timeout=PATIENCE)
    server, _, probe = serve(health={"monitor": monitor})
    probe.wait_for(SERVING)
    assert threads[0].daemon
    server.stop(0).wait(PATIENCE)
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert closed.is_set()


def test_server_that_is_thrown_away_ends_its_thread(engine_server):
    started = threading.Event()
    threads = []

    def note():
        threads.append(threading.current_thread())
        started.set()

    server = engine_server()
    server.enable_health(monitor=ReadinessMonitor({"note": note}, interval=0.05, timeout=PATIENCE))
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert started.wait(PATIENCE)
    del server
    gc.collect()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()


class _Connection:
    """Stands for the driver's: one that the database may drop."""

    def __init__(self, inner):
        self._inner = inner
        self.is_dropped = False

    def cursor(self, *arguments, **keywords):
        if self.is_dropped:
            raise Database.OperationalError("the server has closed the connection")
        return self._inner.cursor(*arguments, **keywords)

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.fixture
def droppable(monkeypatch):
    """The connections of the driver that are made, the last one last."""
    made = []
    real = DatabaseWrapper.get_new_connection

    def connect(self, parameters):
        if made and made[0] is None:
            raise Database.OperationalError("connection refused")
        made.append(_Connection(real(self, parameters)))
        return made[-1]

    monkeypatch.setattr(DatabaseWrapper, "get_new_connection", connect)
    monkeypatch.setattr(DatabaseWrapper, "init_connection_state", lambda self: None)
    monkeypatch.setattr(DatabaseWrapper, "is_in_memory_db", lambda self: False)
    monkeypatch.setattr(DatabaseWrapper, "is_usable", lambda self: not self.connection.is_dropped)
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
    return made


@pytest.mark.usefixtures("databases_allowed")
def test_check_whose_connection_was_dropped_tries_a_new_one(droppable, serve):
    rounds = queue.SimpleQueue()
    go_on = threading.Semaphore(0)

    def look():
        assert go_on.acquire(timeout=PATIENCE)
        rounds.put(len(droppable))
        checks.databases()

    monitor = ReadinessMonitor({"db": look}, interval=0.01, timeout=PATIENCE)
    server, _, probe = serve(health={"monitor": monitor})
    watch = probe.watch()
    assert watch.next() == NOT_SERVING  # no round has passed
    go_on.release()
    assert watch.next() == SERVING
    seen = rounds.get(timeout=PATIENCE)
    calls = ThreadPoolExecutor(1)  # not this thread, which has the database of all tests

    def is_doubtful():
        return calls.submit(lambda: held_connections.thread.held.is_doubtful()).result(PATIENCE)

    assert not is_doubtful()
    droppable[-1].is_dropped = True
    go_on.release()  # the round that finds the dropped one,
    go_on.release()  # and tries again
    assert rounds.get(timeout=PATIENCE) == seen + 1
    assert rounds.get(timeout=PATIENCE) == seen + 1
    assert is_doubtful(), "calls ask theirs before they use them"
    calls.shutdown()
    go_on.release()
    assert rounds.get(timeout=PATIENCE) == seen + 2
    assert server.health.problem is None
    # A database that is not there is told at once.
    droppable[-1].is_dropped = True
    droppable.insert(0, None)
    for _ in range(3):
        go_on.release()
    assert watch.next() == NOT_SERVING
    assert "connection refused" in server.health.problem.text
    watch.cancel()
    for _ in range(100):
        go_on.release()


def test_log_handler_that_raises_does_not_end_the_monitor(checked):
    _, check, probe = checked()
    probe.wait_for(SERVING)
    with odd_handler("django_grpc.health") as lines:
        lines.failure = ConnectionError("the database of the log is away")
        check.failure = NotReady("away")
        probe.wait_for(NOT_SERVING)
        assert lines.entered.wait(PATIENCE)
        check.failure = None
        probe.wait_for(SERVING)
        assert lines.texts[0] == "The readiness check mine failed: away"
