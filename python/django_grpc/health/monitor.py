"""The background thread that runs the readiness checks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
)
from typing import TYPE_CHECKING

from django.db import connections

from django_grpc.engine.endings import Ending
from django_grpc.health import NotReady
from django_grpc.hygiene import close_old_connections
from django_grpc.logs import GuardedLogger, class_name_of, text_of

if TYPE_CHECKING:
    from django_grpc.engine.health import Health

logger = GuardedLogger("django_grpc.health")


class ReadinessMonitor:
    """Runs the readiness checks of a server again and again, and tells it the outcome.

    A round that passes makes the server ready until the next one must have passed. So a check that
    hangs, or an interpreter that runs nothing any more, needs nobody to notice it: the engine
    counts the time.

    A check that fails is logged when it begins to, and when it passes again. Whatever it raises is
    a failure, `SystemExit` too; so is an awaitable or a generator that it returns, as its code has
    not run.

    Args:
        checks: Functions that raise when the server is not ready, by their names for the log.
        interval: Seconds between two rounds.
        timeout: Seconds after which a round that has not ended counts as failed.
    """

    def __init__(
        self, checks: Mapping[str, Callable[[], object]], *, interval: float, timeout: float
    ) -> None:
        self._checks = dict(checks)
        self._interval = interval
        self._timeout = timeout
        self._ended = Ending()
        self._failing: dict[str, str] = {}
        # The check that runs, and since when.
        self._current: tuple[str, float] | None = None

    def start(self, health: Health) -> None:
        """Begin with the first round at once."""
        threading.Thread(target=self._run, args=(health,), name="grpc-health", daemon=True).start()

    def stop(self) -> None:
        """Begin no more rounds; the thread ends when its check has."""
        self._ended.set()

    def overdue(self) -> str | None:
        """Say which check has run for how long."""
        current = self._current
        if current is None:
            return None
        name, since = current
        return f"the check {name} has not ended after {time.monotonic() - since:.1f} s"

    def _run(self, health: Health) -> None:
        try:
            is_well = False
            while not self._ended.is_set():
                try:
                    if is_well:
                        health.set_ready(self._timeout)  # the engine tells when it takes longer
                        is_well = self._round(health)
                    else:
                        with self._telling_when_late():
                            is_well = self._round(health)
                except BaseException as error:  # around the checks: a database's backend, a thread
                    is_well = False
                    health.set_not_ready(f"the readiness checks failed: {_described(error)}")
                    logger.exception("The readiness checks failed")
                self._ended.wait(self._interval)
        finally:
            connections.close_all()

    @contextlib.contextmanager
    def _telling_when_late(self) -> Iterator[None]:
        """Log a round that takes too long where there is no lease that would run out."""

        def tell() -> None:
            if (reason := self.overdue()) is not None:
                logger.warning("The server is not ready: %s", reason)

        timer = threading.Timer(self._timeout, tell)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads: the checks go before this
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _round(self, health: Health) -> bool:
        begun = time.monotonic()
        failures: list[str] = []
        close_old_connections()
        for name, check in self._checks.items():
            if self._ended.is_set():
                return False
            failure = self._perform(name, check)
            self._log(name, failure)
            if failure is not None:
                failures.append(f"the check {name} failed: {failure}")
        close_old_connections()
        taken = time.monotonic() - begun
        if not failures and taken > self._timeout:
            # It has been not ready since. Checks that are always so slow must not make it waver.
            failures.append(f"the checks took {taken:.1f} s, longer than {self._timeout:g} s")
        if failures:
            health.set_not_ready("; ".join(failures))
            return False
        # The next round says what comes after it; this covers until that has begun.
        health.set_ready(self._interval + self._timeout)
        return True

    def _perform(self, name: str, check: Callable[[], object]) -> str | None:
        """Run a check; return the reason of its failure in one line."""
        self._current = (name, time.monotonic())
        try:
            failure = _attempt(check)
            if failure is not None and _close_dead_connections():
                # A connection that the database has dropped says nothing of the database.
                failure = _attempt(check)
            return failure
        finally:
            self._current = None

    def _log(self, name: str, failure: str | None) -> None:
        before = self._failing.pop(name, None)
        if failure is not None:
            self._failing[name] = failure
            if failure != before:
                logger.warning("The readiness check %s failed: %s", name, failure)
        elif before is not None:
            logger.info("The readiness check %s passes again", name)


def _attempt(check: Callable[[], object]) -> str | None:
    try:
        result = check()
        if isinstance(result, Awaitable | Generator | AsyncGenerator):
            if isinstance(result, Coroutine):
                result.close()  # or Python warns that nobody awaits it
            return (
                f"it has not run, as it returned an object of type {type(result).__name__}: a "
                "check must be an ordinary function"
            )
        if result is False:
            return "it returned False: a check raises NotReady to say why"
    except NotReady as error:
        return _in_one_line(error)
    except BaseException as error:  # sys.exit() must not end the monitor
        return _described(error)
    return None


def _close_dead_connections() -> bool:
    """Close the connections of this thread that are of no use any more.

    Returns:
        Whether there were any.
    """
    are_closed = False
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or not connection.errors_occurred:
            continue
        with contextlib.suppress(Exception):  # of closing what is dead
            connection.close_if_unusable_or_obsolete()
        are_closed = are_closed or connection.connection is None
    if are_closed:
        close_old_connections()  # notes the deaths, so that others ask theirs before they use them
    return are_closed


def _described(error: BaseException) -> str:
    text, name = _in_one_line(error), class_name_of(error)
    return f"{name}: {text}" if text else name


def _in_one_line(error: BaseException) -> str:
    return " ".join(text_of(error).split())
