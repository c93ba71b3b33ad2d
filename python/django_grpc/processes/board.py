"""The figures of all worker processes, in memory that they share."""

import os

from django_grpc import _engine


class Board:
    """The parent's view of the shared memory, and who has which of its slots.

    Attributes:
        descriptor: The memory's file, for workers to inherit.
        figures: What is in it.
    """

    def __init__(self, slots: int) -> None:
        """Make the memory. What nobody has touched of it costs nothing."""
        self.descriptor = os.memfd_create("django_grpc")
        self.figures = _engine.make_statistics_board(self.descriptor, slots)
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
        """Take the slot of a process that has ended."""
        self.figures.process_ended(slot)
        # The first in the list is taken first, so that few slots are ever touched.
        self._free.insert(0, slot)


class Pulse:
    """A worker's heartbeat in the shared memory, for its parent and its own engine to see."""

    def __init__(self, descriptor: int, slot: int) -> None:
        """Map the memory."""
        self._figures = _engine.make_statistics_board(descriptor, 0)
        self._slot = slot

    def beat(self) -> None:
        """Tell that Python runs."""
        self._figures.beat(self._slot)
