"""Whether the process has the threads of the system."""

from __future__ import annotations

import sys


def refuse_patched_threads() -> None:
    """See that nobody has replaced threads by greenlets, on which the engine would wait for ever.

    Raises:
        RuntimeError: gevent or eventlet has.
    """
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        name = "gevent"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        name = "eventlet"
    else:
        return
    raise RuntimeError(
        f"{name} has replaced the threads of this process by greenlets, and django_grpc's engine "
        "needs those of the system: run the server in a process that is not monkey-patched."
    )
