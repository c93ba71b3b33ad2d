"""What ps(1) and top(1) call this process and its threads."""

import contextlib
import threading

from django.conf import settings

from django_grpc.processes import origin


def name_process(role: str) -> None:
    """Tell the parent of worker processes from them, where setproctitle is installed.

    Args:
        role: ``parent`` or ``worker``.
    """
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    origin.worker_environment()  # it lies where the title is going to be
    setproctitle(f"grpcserver: {role} [{settings.SETTINGS_MODULE}]")


def name_threads() -> None:
    """Give the server's threads the names that Python knows them by, as Python 3.14 does itself."""
    for thread in threading.enumerate():
        if thread.name.startswith("grpc") and thread.native_id is not None:
            with contextlib.suppress(OSError):
                with open(f"/proc/self/task/{thread.native_id}/comm", "w") as comm:
                    comm.write(thread.name[:15])
