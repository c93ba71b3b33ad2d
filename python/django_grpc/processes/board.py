"""The figures of all worker processes, in memory that they share.

The layout is an agreement with ``Sources/GRPCEngineStatistics``, which writes the slots: a header
of 4,096 bytes and then the slots, all of them unsigned 64-bit numbers in the machine's order.
"""

import mmap
import os
import time
from typing import Final

_MAGIC: Final = 0x3130_4442_4352_5047
_HEADER_SIZE: Final = 4096
_SLOT_SIZE: Final = 512 * 1024
_WORD: Final = 8

# Indices into the header.
_WORKERS: Final = 3
_RESTARTS: Final = {
    reason: index
    for index, reason in enumerate(
        ("crash", "calls", "age", "memory", "reload", "hang", "signal"), start=8
    )
}

# Indices into a slot.
_READY: Final = 2
_PULSE: Final = 12
_LEAVING: Final = 13
_GAUGES: Final = 64
_CALLS_ENDED: Final = 64
_FIRST_METHOD: Final = 4096 // _WORD
_METHOD_WORDS: Final = 1024 // _WORD
_METHODS: Final = 250
_METHOD_IN_FLIGHT: Final = 26
_METHOD_STARTED: Final = 27
_METHOD_ENDED: Final = 28
_CODES: Final = 17
_UNAVAILABLE: Final = 14


class Board:
    """The parent's view of the shared memory.

    Attributes:
        descriptor: The memory's file, for workers to inherit.
    """

    def __init__(self, slots: int) -> None:
        """Make the memory. What nobody has touched of it costs nothing."""
        size = _HEADER_SIZE + slots * _SLOT_SIZE
        self.descriptor = os.memfd_create("django_grpc")
        os.ftruncate(self.descriptor, size)
        self._words = memoryview(mmap.mmap(self.descriptor, size)).cast("Q")
        self._words[0] = _MAGIC
        self._words[1] = slots
        self._words[2] = _SLOT_SIZE
        self._free = list(range(slots))

    @staticmethod
    def slots_for(workers: int) -> int:
        """Return how many slots leave room for restarts and for more workers later."""
        return max(64, 2 * workers + 8)

    def take(self) -> int:
        """Take a slot that no living process has.

        Raises:
            IndexError: There is none: there are as many processes as slots.
        """
        return self._free.pop(0)

    def give_back(self, slot: int) -> None:
        """Clear the gauges of a process that has ended. Its counters stay: sums must not fall.

        Calls that it had begun and can't end any more are counted as what their clients see.
        """
        first = _first(slot)
        for index in range(first, first + _GAUGES):
            self._words[index] = 0
        for method in range(_METHODS):
            record = first + _FIRST_METHOD + method * _METHOD_WORDS
            if not self._words[record]:  # a name's length: no further methods
                break
            self._words[record + _METHOD_IN_FLIGHT] = 0
            ended = record + _METHOD_ENDED
            lost = self._words[record + _METHOD_STARTED] - sum(self._words[ended : ended + _CODES])
            if lost > 0:
                self._words[ended + _UNAVAILABLE] += lost
                self._words[first + _CALLS_ENDED] += lost
        # The first in the list is taken first, so that few slots are ever touched.
        self._free.insert(0, slot)

    def is_ready(self, slot: int) -> bool:
        """Whether a process says that it is ready for calls."""
        return self._words[_first(slot) + _READY] != 0

    def pulse(self, slot: int) -> int:
        """Return what a worker's `Pulse` wrote last; 0: it has none."""
        return self._words[_first(slot) + _PULSE]

    def announce(self, slot: int) -> None:
        """Have a process say NOT_SERVING to health checks: its engine sees it, without Python."""
        self._words[_first(slot) + _LEAVING] = 1

    def calls_ended(self, slot: int) -> int:
        """Return the calls that have ended in a slot, those of processes before included."""
        return self._words[_first(slot) + _CALLS_ENDED]

    def set_workers(self, count: int) -> None:
        """Say how many worker processes there ought to be."""
        self._words[_WORKERS] = count

    def count_restart(self, reason: str) -> None:
        """Count that a worker was replaced, after a crash or by a plan."""
        self._words[_RESTARTS[reason]] += 1


class Pulse:
    """A worker's heartbeat in the shared memory, for its parent and its own engine to see."""

    def __init__(self, descriptor: int, slot: int) -> None:
        """Map the memory."""
        self._words = memoryview(mmap.mmap(descriptor, 0)).cast("Q")
        self._index = _first(slot) + _PULSE

    def beat(self) -> None:
        """Tell that Python runs."""
        self._words[self._index] = time.monotonic_ns() // 1_000_000


def _first(slot: int) -> int:
    return (_HEADER_SIZE + slot * _SLOT_SIZE) // _WORD
