"""The readiness checks, and the thread that runs them."""

import gc
import logging
import queue
import re
import threading

import pytest
from django.db import DatabaseError, connection, connections
from django.db.migrations.recorder import MigrationRecorder
from harness import PATIENCE

from django_grpc.health import NotReady, checks
from django_grpc.health.monitor import ReadinessMonitor

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
        self.entered = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def __call__(self):
        self.entered.set()
        assert self.release.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure


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


@pytest.fixture
def logged():
    """The messages of the health's log, as they come."""
    messages = queue.SimpleQueue()

    class Handler(logging.Handler):
        def emit(self, record):
            messages.put(record.getMessage())

    # Not pytest's handler, which may be called after one that a test waits for.
    handler, logger = Handler(), logging.getLogger("django_grpc.health")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_check_that_hangs_fails_after_its_time(checked, logged):
    server, check, probe = checked(timeout=0.5)
    probe.wait_for(SERVING)
    watch = probe.watch()
    assert watch.next() == SERVING
    check.release.clear()
    assert watch.next() == NOT_SERVING
    assert server.health.problem.cause == "lease"
    hanging = logged.get(timeout=PATIENCE)
    assert hanging.startswith("The server is not ready: the check mine has not ended after ")
    check.release.set()
    assert watch.next() == SERVING
    assert logged.get(timeout=PATIENCE) == "The server is ready again"
    server.stop(0).wait(PATIENCE)
    watch.cancel()


def test_first_check_that_hangs_is_logged(checked, serve, logged):
    check = Check()
    check.release.clear()
    monitor = ReadinessMonitor({"mine": check}, interval=0.05, timeout=0.2)
    server, _, _ = serve(health={"monitor": monitor})
    message = logged.get(timeout=PATIENCE)
    assert logged.empty()
    assert message.startswith("The server is not ready: the check mine has not ended after 0.")
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
    pause = threading.Event()
    monitor = ReadinessMonitor({"slow": lambda: pause.wait(0.2)}, interval=0.01, timeout=0.1)
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
