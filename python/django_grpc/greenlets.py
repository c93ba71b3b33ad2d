"""Whether the process has the threads and the waits of the system."""

import sys
import threading
from types import FrameType
from typing import Final

_MEND: Final = "run the server in a process that is not monkey-patched."


def sleep(seconds: float) -> None:
    """Wait so long, by the system's means, on a daemon thread.

    gevent's ``time.sleep`` runs a loop of the thread's own, which takes the whole process down if
    it still waits when the interpreter has ended.
    """
    threading.Event().wait(seconds)


def main_frame() -> FrameType | None:
    """Return the innermost frame of this thread's program, if a greenlet interrupts it."""
    if (greenlet := sys.modules.get("greenlet")) is None:
        return None
    main = greenlet.getcurrent()
    while main.parent is not None:
        main = main.parent
    frame: FrameType | None = main.gr_frame  # none while it runs
    return frame


def refuse_patched_threads() -> None:
    """See that nobody has replaced threads by greenlets, on which the engine would wait for ever.

    Queues between threads are replaced by themselves, too: ``patch_all(thread=False)``.

    Raises:
        RuntimeError: gevent or eventlet has.
    """
    if name := _who_patched("threading"):
        what = "threads of this process by greenlets"
    elif name := _who_patched("queue"):
        what = "queues of this process by those of greenlets"
    else:
        return
    raise RuntimeError(
        f"{name} has replaced the {what}, and django_grpc's engine needs those of the system: "
        f"{_MEND}"
    )


def refuse_patched_processes() -> None:
    """See that a process can be the parent of worker processes, or one of them.

    Raises:
        RuntimeError: gevent or eventlet has replaced what it waits with.
    """
    for module in ("os", "select", "signal", "socket", "subprocess"):
        if name := _who_patched(module):
            raise RuntimeError(
                f"{name} has replaced parts of Python's module '{module}' in this process, which "
                f"worker processes need: give --workers 1, or {_MEND}"
            )


def _who_patched(module: str) -> str | None:
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched(module):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    # Its 'thread' is queues, too.
    name = "thread" if module in ("threading", "queue") else module
    if eventlet is not None and eventlet.is_monkey_patched(name):
        return "eventlet"
    return None
