"""`grpcserver --autoreload`: Django's reloader, with a server that drains when it is told to stop.

As with `runserver` there are two processes. The child serves on a thread and watches the files on
its main thread; when one changes it exits with status 3 and is started again. Django's own parent
kills the child outright when it is told to stop, so the parent here is ours.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from django.core.management.base import CommandError
from django.utils import autoreload

from django_grpc.management import threads
from django_grpc.management.shutdown import ShutdownRequest, StoppedAtStart

# What a request says when a file has changed: nobody wants to wait for a drain then.
RELOAD = "reload"
_RELOAD_STATUS = 3  # of a process that Django's reloader ends


def is_child() -> bool:
    """Whether this process is the one that serves."""
    return os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"


def run_child(serve: Callable[[ShutdownRequest], None]) -> None:
    """Serve on a thread, and watch the files until one changes or a signal comes.

    Args:
        serve: Serves until the request that it is given; what it raises is printed, and it is
            called again, in a new process, when a file has changed.

    Raises:
        SystemExit: With status 3, when a file has changed, or the project's own.
        StoppedAtStart: A signal came before anything was served.
        CommandError: The system has no thread left to serve on.
    """
    shutdown = ShutdownRequest(is_starting=True)
    has_ended = threading.Event()
    broken = _BrokenFiles()

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

    autoreload.autoreload_started.connect(broken.watch)
    reason = signal.SIGTERM.name
    try:
        with threads.explaining_refusal():
            reason = _reload(run)
    finally:
        never_serves = shutdown.end_start(reason)
        if not never_serves:
            with shutdown:
                has_ended.wait()
    if reason == RELOAD:
        sys.exit(_RELOAD_STATUS)
    if never_serves and not has_ended.is_set():
        raise StoppedAtStart(reason)


def _reload(run: Callable[[], None]) -> str:
    """Run on a thread until a signal comes or a file changes, and return which."""
    try:
        autoreload.run_with_reloader(run)
    except SystemExit as leaving:
        if leaving.code not in (0, _RELOAD_STATUS):  # of a URLconf, which it imports
            raise
        return RELOAD if leaving.code == _RELOAD_STATUS else signal.SIGTERM.name
    return signal.SIGINT.name  # it swallows KeyboardInterrupt


class _BrokenFiles:
    """Has the reloader watch the files that an error came through.

    It watches the modules that could be imported, and the one file where the traceback ends: that
    may be a library's, or of an error that it does not see.
    """

    def __init__(self) -> None:
        self._files: frozenset[Path] = frozenset()
        self._reloader: autoreload.BaseReloader | None = None

    def add(self, error: BaseException) -> None:
        """Have the files of an error watched; on any thread."""
        found = {it.filename for it in traceback.extract_tb(error.__traceback__)}
        if isinstance(error, SyntaxError) and error.filename:
            found.add(error.filename)
        self._files = frozenset(Path(it) for it in found if os.path.isfile(it))
        self._tell()

    def watch(self, sender: autoreload.BaseReloader, **kwargs: object) -> None:
        """Receive that the reloader begins."""
        self._reloader = sender
        self._tell()

    def _tell(self) -> None:
        if self._reloader is not None:
            # Not in place: the reloader may be iterating over them.
            self._reloader.extra_files = self._reloader.extra_files | self._files


def run_parent() -> None:
    """Start the child, again whenever it asks for it, and pass on what it is told.

    Raises:
        SystemExit: With the child's status.
        CommandError: The system does not let it start one.
    """
    parent = _Parent()
    previous = {
        number: signal.signal(number, parent.pass_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        sys.exit(parent.run())
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Parent:
    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    def run(self) -> int:
        environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
        arguments = autoreload.get_child_arguments()
        while not self._is_stopping:
            try:
                self._child = subprocess.Popen(  # noqa: S603 - our own command line
                    arguments, env=environment, close_fds=False
                )
            except OSError as error:
                mend = f" {threads.MEND}" if error.errno == errno.EAGAIN else ""
                raise CommandError(
                    f"The process that serves can't be started: {error.strerror}.{mend}"
                ) from error
            if self._is_stopping:  # it was told while the child was made, which has not heard
                self._child.terminate()
            status = self._child.wait()
            if self._is_stopping and status in (_RELOAD_STATUS, -signal.SIGTERM, -signal.SIGINT):
                return 0  # it was told before it could listen
            if status != _RELOAD_STATUS:
                return 128 - status if status < 0 else status
        return 0

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True
        # The terminal sends ^C to both processes, and a second one would end the child at once.
        if self._child is not None and not (number == signal.SIGINT and _is_in_foreground()):
            self._child.send_signal(number)


def _is_in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # no terminal, or no standard input at all
        return False
