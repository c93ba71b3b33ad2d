"""Starting threads, which the system may refuse."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

from django.core.management.base import CommandError

from django_grpc.shortage import is_refusal

#: What to do where there are too few.
MEND: Final = (
    "Raise the limit of threads (ulimit -u, systemd's TasksMax, a container's pids limit), or that "
    "of memory (ulimit -v)."
)


def start(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread.

    Raises:
        CommandError: The system refuses it.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    with explaining_refusal():
        thread.start()
    return thread


@contextlib.contextmanager
def explaining_refusal(returncode: int = 1) -> Iterator[None]:
    """Name the mend where a thread can't be started.

    Args:
        returncode: The exit status that goes with it.

    Raises:
        CommandError: The system refused one. Other errors propagate.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_refusal(error):
            raise
        raise CommandError(
            f"The system refuses the server a thread. {MEND}", returncode=returncode
        ) from error
