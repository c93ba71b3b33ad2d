"""What the connections of a worker are expected to carry."""


class Load:
    """The calls of a worker's connections, from what was measured and what has changed since.

    Attributes:
        calls: Calls a second on the connections that were there at the last measurement and are
            still open; those that have gone are taken for average ones.
        known: How many connections that is.
        new: Connections that have come since: nothing is known of them.
    """

    def __init__(self) -> None:
        """Begin without a connection."""
        self.calls = 0.0
        self.known = 0
        self.new = 0

    def opened(self) -> None:
        """Note a new connection."""
        self.new += 1

    def closed(self, count: int) -> None:
        """Note that connections have gone, nobody knows which."""
        total = self.known + self.new
        left = max(0, total - count)
        known = round(self.known * left / total) if total else 0
        if self.known:
            self.calls *= known / self.known
        self.known, self.new = known, left - known

    def measured(self, calls: float, connections: int) -> None:
        """Note the calls a second on so many connections, since the last time."""
        # Half of the figure is of now and half is older; of new connections all of it is.
        self.calls = (self.calls + calls) / 2 if self.known else calls
        self.known, self.new = connections, 0

    def expected(self, average: float) -> float:
        """Return the calls a second to reckon with.

        Args:
            average: Those of one connection, over all workers.
        """
        return self.calls + self.new * average
