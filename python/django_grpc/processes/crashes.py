"""Accounts of failures, and how long to wait before another try."""

#: A worker that ends within so many seconds of service ended early.
EARLY = 10.0

#: Failures in a row at which there is no hope.
LIMIT = 5

#: Seconds after which failures are forgotten: more than the longest pause, a slow start and `EARLY`
#: together, so that what fails again and again is still a row.
FORGOTTEN_AFTER = 180.0

# Seconds to wait before the next try, after the first failure, the second, and so on.
_PAUSES = (0.0, 1.0, 2.0, 4.0)
_LONGEST_PAUSE = 30.0


class Failures:
    """Counts failures in a row.

    Workers that were under way together fail together: they count as one. A row ends with a success
    of a worker that was started after the last failure, and with time.

    Attributes:
        retry_at: When the next worker may be started, by `time.monotonic`.
    """

    def __init__(self) -> None:
        """Begin without a failure."""
        self.retry_at = 0.0
        self._count = 0
        self._last = 0.0

    @property
    def is_hopeless(self) -> bool:
        """Whether there were too many."""
        return self._count >= LIMIT

    def failed(self, started_at: float, now: float) -> None:
        """Note that a worker failed.

        Args:
            started_at: When it was started.
            now: The time.
        """
        if started_at < self._last:
            return
        if now - self._last > FORGOTTEN_AFTER:
            self._count = 0
        self._count += 1
        self._last = now
        pauses = _PAUSES[self._count - 1 :]
        self.retry_at = now + (pauses[0] if pauses else _LONGEST_PAUSE)

    def succeeded(self, started_at: float) -> None:
        """Note that a worker, started then, did what others failed to."""
        if started_at > self._last:
            self.forget()

    def forget(self) -> None:
        """Begin anew: what failed before says nothing of what comes."""
        self._count = 0
        self.retry_at = 0.0
