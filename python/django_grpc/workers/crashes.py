"""How long to wait before another try, when workers end as soon as they have begun."""

#: A worker that ends within so many seconds of service ended early.
EARLY = 10.0

#: Failures in a row at which the server gives up.
LIMIT = 5

# Seconds to wait before the next try, after the first failure, the second, and so on.
_PAUSES = (0.0, 1.0, 2.0, 4.0)
_LONGEST_PAUSE = 30.0


class CrashLoop:
    """Counts failures in a row.

    Workers that were under way together fail together: they count as one. A worker that was started
    after the last failure and serves for `EARLY` seconds ends the row.

    Attributes:
        retry_at: When the next worker may be started, by `time.monotonic`.
    """

    def __init__(self) -> None:
        """Begin without a failure."""
        self.retry_at = 0.0
        self._failures = 0
        self._last = 0.0

    @property
    def is_hopeless(self) -> bool:
        """Whether there were too many."""
        return self._failures >= LIMIT

    def failed(self, started_at: float, now: float) -> None:
        """Note that a worker ended early.

        Args:
            started_at: When it was started.
            now: The time.
        """
        if started_at < self._last:
            return
        self._failures += 1
        self._last = now
        pauses = _PAUSES[self._failures - 1 :]
        self.retry_at = now + (pauses[0] if pauses else _LONGEST_PAUSE)

    def serves(self, started_at: float, ready_at: float, now: float) -> None:
        """Note that a worker serves."""
        if started_at > self._last and now - ready_at >= EARLY:
            self._failures = 0
