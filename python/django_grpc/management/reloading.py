"""`grpcserver --autoreload`: Django's reloader, with a server that drains when it is told to stop.

As with `runserver` there are two processes. The child serves on a thread and watches the files on
its main thread; when one changes it exits with status 3 and is started again. Django's own parent
kills the child outright when it is told to stop, so the parent here is ours. It also watches the
files itself when a child could not: only of `runserver` Django goes on when an app can't be loaded.
"""

import contextlib
import errno
import functools
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final

from django.apps import apps
from django.core.management.base import CommandError, OutputWrapper
from django.utils import autoreload

from django_grpc.lifecycle import threads
from django_grpc.lifecycle.shutdown import ShutdownRequest, StoppedAtStart

logger = logging.getLogger("django.utils.autoreload")

# What a request says when a file has changed: nobody wants to wait for a drain then.
RELOAD: Final = "reload"

#: The status of a process that Django's reloader ends.
RELOAD_STATUS: Final = 3

#: The status of a child that no changed file will mend; its parent ends with 1.
HOPELESS_STATUS: Final = 75

# Seconds between two looks at the files, as Django has it.
_PERIOD: Final = 1.0

# Seconds for which the first look waits for the server: a file that is not imported yet would count
# as unchanged at the second. A start that hangs is not to keep it from looking.
_START_TIME: Final = 10.0


def is_child() -> bool:
    """Whether this process is the one that serves."""
    return os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"


def run_child(serve: Callable[[ShutdownRequest], None], *, is_process: bool) -> None:
    """Serve on a thread, and watch the files until one changes or a signal comes.

    Args:
        serve: Serves until the request that it is given; what it raises is printed, and it is
            called again, in a new process, when a file has changed.
        is_process: Whether the process ends with it.

    Raises:
        SystemExit: With status 3, when a file has changed, or the project's own.
        StoppedAtStart: A signal came before anything was served.
        CommandError: The system has no thread left to serve on.
    """
    reloader = autoreload.get_reloader()
    shutdown = _Request(reloader, is_last=is_process)
    has_ended = threading.Event()
    broken = _BrokenFiles(reloader)

    def wait_for_start(**kwargs: object) -> None:
        shutdown.wait_for_start(_START_TIME)

    def run() -> None:
        try:
            autoreload.raise_last_exception()
            serve(shutdown)
        except BaseException as error:
            broken.add(error)
            if isinstance(error, SystemExit):  # a thread ends on it without a word
                traceback.print_exception(error)
            raise
        finally:
            has_ended.set()
            shutdown.start_is_over()

    autoreload.autoreload_started.connect(wait_for_start)
    reason = signal.SIGTERM.name
    with shutdown:
        try:
            with threads.explaining_refusal(returncode=HOPELESS_STATUS):
                reason = shutdown.reload(run)
        except StoppedAtStart as stopped:  # as it returned
            reason = stopped.reason
        finally:
            never_serves = shutdown.end_start(reason)
            if not never_serves:
                shutdown.wake_for_signals()
                has_ended.wait()
    if reason == RELOAD:
        sys.exit(RELOAD_STATUS)
    if never_serves and not has_ended.is_set():
        raise StoppedAtStart(reason)


class _Request(ShutdownRequest):
    """Ends the reloader of the main thread, too."""

    def __init__(self, reloader: autoreload.BaseReloader, *, is_last: bool) -> None:
        super().__init__(is_starting=True, is_last=is_last)
        self._reloader = reloader
        self._is_reloading = False
        # The signal that has come.
        self._interruption: StoppedAtStart | None = None
        # Has an item once the server's code has been imported, or can't be. What a signal
        # interrupts may raise anywhere: that would break the lock of an Event.
        self._starts: SimpleQueue[None] = SimpleQueue()

    def begin_serving(self) -> None:
        self.start_is_over()
        super().begin_serving()

    def start_is_over(self) -> None:
        self._starts.put(None)

    def wait_for_start(self, seconds: float) -> None:
        with contextlib.suppress(Empty):
            self._starts.get(timeout=seconds)

    def reload(self, run: Callable[[], None]) -> str:
        """Run on a thread until a signal comes or a file changes, and return which."""
        logger.info("Watching for file changes with %s", type(self._reloader).__name__)
        try:
            self._is_reloading = True
            autoreload.start_django(self._reloader, run)
        except KeyboardInterrupt:
            pass
        except SystemExit as leaving:
            if leaving.code != RELOAD_STATUS:  # of a URLconf, which it imports
                raise
            return RELOAD
        finally:
            self._is_reloading = False
        return signal.SIGINT.name if self._interruption is None else self._interruption.reason

    def interrupt(self, name: str) -> None:
        self._interruption = StoppedAtStart(name)
        # Nobody hears of what is raised if it is a finalizer that is interrupted, or a callback of
        # the garbage collector: then the reloader ends before its next look.
        self._reloader.stop()
        if self._is_reloading:
            raise self._interruption


class _BrokenFiles:
    """Has the reloader watch the files that an error came through.

    It watches the modules that could be imported, and the one file where the traceback ends: that
    may be a library's, or of an error that it does not see. Of a file with null bytes Python tells
    no name at all: then it may be any of the project's.
    """

    def __init__(self, reloader: autoreload.BaseReloader) -> None:
        self._reloader = reloader

    def add(self, error: BaseException) -> None:
        """Have the files of an error watched; on any thread."""
        found = {it.filename for it in traceback.extract_tb(error.__traceback__)}
        if isinstance(error, SyntaxError):
            found.update([error.filename] if error.filename else map(str, _Files().paths()))
        files = {Path(it) for it in found if os.path.isfile(it)}
        # Not in place: the reloader may be iterating over them.
        self._reloader.extra_files = self._reloader.extra_files | files


def run_parent(output: OutputWrapper) -> None:
    """Start the child, again whenever it asks for it, and pass on what it is told.

    Args:
        output: Hears that a child could not run, and that a change is waited for.

    Raises:
        SystemExit: With the child's status.
        CommandError: The system does not let it start one.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CommandError(
            "--autoreload needs the main thread, for the signals: run the command there, or leave "
            "it out."
        )
    parent = _Parent(output)
    previous = {
        number: signal.signal(number, parent.pass_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        sys.exit(parent.run())
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Parent:
    def __init__(self, output: OutputWrapper) -> None:
        self._output = output
        self._child: subprocess.Popen[bytes] | None = None
        # Has an item once it was told to stop. A signal handler may put one at any time.
        self._told: SimpleQueue[None] = SimpleQueue()

    def run(self) -> int:
        files = _Files()
        environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
        arguments = autoreload.get_child_arguments()
        while self._told.empty():
            files.note()  # before the child reads them
            try:
                self._child = subprocess.Popen(  # noqa: S603 - our own command line
                    arguments, env=environment, close_fds=False
                )
            except OSError as error:
                mend = f" {threads.MEND}" if error.errno == errno.EAGAIN else ""
                raise CommandError(
                    f"The process that serves can't be started: {error.strerror}.{mend}"
                ) from error
            if not self._told.empty():  # it was told while the child was made, and has not heard
                self._child.terminate()
            status = self._child.wait()
            self._child = None
            if not self._told.empty() and status in (
                RELOAD_STATUS,
                -signal.SIGTERM,
                -signal.SIGINT,
            ):
                return 0  # it was told before it could listen
            if status == HOPELESS_STATUS:
                return 1
            if status <= 0 or not self._told.empty():
                return 128 - status if status < 0 else status
            if status != RELOAD_STATUS:
                self._wait_for_change(status, files)
        return 0

    def _wait_for_change(self, status: int, files: "_Files") -> None:
        self._output.write(
            f"The process that serves has ended with status {status}. It is started again when a "
            "file changes."
        )
        self._output.flush()
        while not files.have_changed():
            with contextlib.suppress(Empty):
                self._told.get(timeout=_PERIOD)
                self._told.put(None)
                return

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told.put(None)
        # The terminal sends ^C to both processes, and a second one would end the child at once.
        if self._child is not None and not (number == signal.SIGINT and _is_in_foreground()):
            self._child.send_signal(number)


class _Files:
    """The files of the modules that this process has imported, and those beside them.

    The child may have failed on one that only it imports. Of libraries only the former count.
    """

    def __init__(self) -> None:
        self._reloader = autoreload.StatReloader()
        for app in apps.get_app_configs():
            if _is_of_the_project(folder := Path(app.path).resolve()):
                self._reloader.watch_dir(folder, "**/*.py")
        for folder in {it.parent for it in self._reloader.watched_files(include_globs=False)}:
            if _is_of_the_project(folder):
                self._reloader.watch_dir(folder, "*.py")
        self._noted: dict[Path, float] = {}

    def paths(self) -> set[Path]:
        """Return where they are."""
        return set(self._look())

    def note(self) -> None:
        """Note what they are like now."""
        self._noted = self._look()

    def have_changed(self) -> bool:
        """Whether they are no more as they were noted."""
        return self._look() != self._noted

    def _look(self) -> dict[Path, float]:
        return dict(self._reloader.snapshot_files())


def _is_of_the_project(folder: Path) -> bool:
    return not any(map(folder.is_relative_to, _libraries()))


@functools.cache
def _libraries() -> frozenset[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return frozenset(Path(sysconfig.get_path(it)).resolve() for it in names)


def _is_in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # no terminal, or no standard input at all
        return False
