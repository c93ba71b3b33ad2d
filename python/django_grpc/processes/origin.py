"""How this process was started, so that its workers start likewise.

The settings have run by now, and may have gone elsewhere (`os.chdir`) or filled the environment
from a file. Workers read them anew, so they begin where this process began, with what that had.
"""

import functools
import os
import sys

from django_grpc.processes import systemd

# What a worker's process runs first, becoming the worker then: a request to be killed with its
# parent (prctl(2), PR_SET_PDEATHSIG), whatever it hangs in. A program of its own does that, since
# `preexec_fn` would fork the parent, whose libraries have handlers for that: grpcio's wait for
# threads of a client, or end the child.
_BEGIN = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):  # it ended before it was asked
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def worker_command() -> list[str]:
    """Return the command of a worker process: this one's command line, once more."""
    command = [sys.executable, *sys.orig_argv[1:]]
    return [sys.executable, "-S", "-P", "-c", _BEGIN, str(os.getpid()), *command]


def worker_environment() -> dict[str, str]:
    """Return the environment that this process began with, but for what was meant for it only."""
    return systemd.for_workers(_first_environment() or os.environ)


@functools.cache
def _first_environment() -> dict[str, str] | None:
    """Return what the kernel has of it; None where that is not to be had.

    It lies in the memory of the process, where setproctitle and the like write titles.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            lines = file.read().split(b"\0")
    except OSError:
        return None
    pairs = [os.fsdecode(line).partition("=") for line in lines if line]
    environment = {name: value for name, _, value in pairs}
    is_whole = all(name and equals for name, equals, _ in pairs)
    return environment if is_whole and ("PATH" in environment) == ("PATH" in os.environ) else None


@functools.cache
def start_directory() -> str | None:
    """Return the directory that this process was started in, as far as Python tells.

    The command line may be relative to it. None where there is nothing to tell.

    It has the name by which a shell has come there (``PWD``), so that what a link leads to when a
    worker starts is taken (releases behind ``current``).
    """
    directory = _physical_start_directory()
    said = os.environ.get("PWD", "")
    try:
        if os.path.isabs(said) and os.path.samefile(said, directory or "."):
            return said
    except OSError:
        pass
    return directory if directory is not None and os.path.isdir(directory) else None


def _physical_start_directory() -> str | None:
    main = sys.modules["__main__"]
    script, path = sys.argv[0], getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is not None:  # python -m
        # It has the directory on the path of modules, among what the settings have put there and
        # what the environment has. A shell says which it was, if nobody has moved on since.
        given = {os.path.realpath(it) for it in os.environ.get("PYTHONPATH", "").split(os.pathsep)}
        for directory in (os.path.realpath(os.environ.get("PWD", "/")), os.getcwd()):
            if directory in sys.path and directory not in given:
                return directory
    elif path is not None and not os.path.isabs(script) and path.endswith(f"/{script}"):
        return path[: -len(script) - 1] or "/"
    return None
