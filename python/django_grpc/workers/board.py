"""The figures of all worker processes, in memory that they share.

The layout is an agreement with ``Sources/GRPCEngineStatistics``, which writes the slots: a header
of 4,096 bytes and then the slots, all of them unsigned 64-bit numbers in the machine's order.
"""

import mmap
import os
from typing import Final

_MAGIC: Final = 0x3130_4442_4352_5047
_HEADER_SIZE: Final = 4096
_SLOT_SIZE: Final = 512 * 1024
_WORD: Final = 8

# Indices into the header.
_WORKERS: Final = 3
_RESTARTS: Final = {"crash": 8, "calls": 9, "age": 10, "memory": 11, "reload": 12}

# Indices into a slot.
_READY: Final = 2
_GAUGES: Final = 64
_CALLS_ENDED: Final = 64
_FIRST_METHOD: Final = 4096 // _WORD
_METHOD_WORDS: Final = 1024 // _WORD
_METHODS: Final = 250
_METHOD_IN_FLIGHT: Final = 26


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

    def take(self) -> int | None:
        """Take a slot that no living process has; None: there is none."""
        return self._free.pop(0) if self._free else None

    def give_back(self, slot: int) -> None:
        """Clear the gauges of a process that has ended. Its counters stay: sums must not fall."""
        first = self._first(slot)
        for index in range(first, first + _GAUGES):
            self._words[index] = 0
        for method in range(_METHODS):
            record = first + _FIRST_METHOD + method * _METHOD_WORDS
            if not self._words[record]:  # a name's length: no further methods
                break
            self._words[record + _METHOD_IN_FLIGHT] = 0
        # The first in the list is taken first, so that few slots are ever touched.
        self._free.insert(0, slot)

    def is_ready(self, slot: int) -> bool:
        """Whether a process says that it is ready for calls."""
        return self._words[self._first(slot) + _READY] != 0

    def calls_ended(self, slot: int) -> int:
        """Return the calls that have ended in a slot, those of processes before included."""
        return self._words[self._first(slot) + _CALLS_ENDED]

    def set_workers(self, count: int) -> None:
        """Say how many worker processes there ought to be."""
        self._words[_WORKERS] = count

    def count_restart(self, reason: str) -> None:
        """Count that a worker was replaced, after a crash or by a plan."""
        self._words[_RESTARTS[reason]] += 1

    @staticmethod
    def _first(slot: int) -> int:
        return (_HEADER_SIZE + slot * _SLOT_SIZE) // _WORD
