"""What prctl(2) says of parents and children."""

import contextlib
import ctypes
import os
from typing import Final

_SET_DEATH_SIGNAL: Final = 1
_GET_CHILD_SUBREAPER: Final = 37

_libc = ctypes.CDLL(None, use_errno=True)


def outlive_parent() -> None:
    """Have this process not be killed with its parent any more."""
    _libc.prctl(_SET_DEATH_SIGNAL, 0, 0, 0, 0)


class Orphans:
    """The processes that the system makes this one's children when their parents have ended.

    That is so for the first process of a container, and for one that has asked for it
    (``PR_SET_CHILD_SUBREAPER``). Nobody else can reap them.
    """

    def __init__(self) -> None:
        """Take note of the children that there are: whoever has started them waits for them."""
        self._has_them = os.getpid() == 1 or _is_subreaper()
        self._others = set(_children()) if self._has_them else set()

    def reap(self, known: set[int]) -> None:
        """Reap those that have ended.

        Args:
            known: This process's own children, which others wait for.
        """
        if not self._has_them:
            return
        children = set(_children())
        self._others &= children
        for pid in children - self._others - known:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _is_subreaper() -> bool:
    answer = ctypes.c_int(0)
    return (
        _libc.prctl(_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0) == 0 and answer.value != 0
    )


def _children() -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found
