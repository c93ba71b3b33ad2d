"""What is measured: one `Work` for each row of the table, and what it must reach."""

from dataclasses import dataclass
from enum import Enum

#: Rows or messages in each of the calls that carry many.
MANY = 1_000

#: `--max_workers` of both servers.
WORKERS = 8


class Metric(Enum):
    """What a round of a work yields, and how two sides compare."""

    #: Calls or messages a second; the ratio is ours / peer's.
    RATE = "rate"
    #: Median microseconds of a call; the ratio is peer's / ours.
    LATENCY = "latency"
    #: Calls a second; the target is a share of the ideal, whatever the peer does.
    SHARE_OF_IDEAL = "share of ideal"


@dataclass(frozen=True)
class Work:
    """One kind of load.

    Attributes:
        name: what `--only` takes.
        title: the first column of the table.
        method: of the service `bench.Bench`.
        connections: HTTP/2 connections (h2load's -c).
        streams: calls in flight on each connection (h2load's -m).
        target: the least ratio of the sides; with SHARE_OF_IDEAL, the least share of `ideal`.
        unit: what is counted.
        units_per_call: how many of them one call carries.
        metric: how a round is read.
        ideal: calls a second that could be answered at all; 0 when unknown.
    """

    name: str
    title: str
    method: str
    connections: int
    streams: int
    target: float
    unit: str = "calls/s"
    units_per_call: int = 1
    metric: Metric = Metric.RATE
    ideal: float = 0.0

    @property
    def in_flight(self) -> int:
        """Calls in flight on all connections together."""
        return self.connections * self.streams


WORKS: tuple[Work, ...] = (
    Work("unary", "trivial unary, 100 in flight", "SayHello", 4, 25, 10.0),
    Work(
        "latency",
        "trivial unary, one at a time: median",
        "SayHello",
        1,
        1,
        2.5,
        unit="µs",
        metric=Metric.LATENCY,
    ),
    Work("get", "get(pk) + serialize_model of 8 fields", "GetCity", 4, 25, 3.5),
    # Calls of many messages: two in flight, where the peer is at its best on 2 cores. With
    # more its worker threads fight for the GIL, and the comparison would flatter us.
    Work(
        "list",
        "list of 1,000 rows in one message",
        "ListCities",
        2,
        1,
        2.0,
        unit="rows/s",
        units_per_call=MANY,
    ),
    Work(
        "server-stream",
        "server stream of 1,000 rows",
        "StreamCities",
        2,
        1,
        8.0,
        unit="messages/s",
        units_per_call=MANY,
    ),
    Work(
        "client-stream",
        "client stream of 1,000 messages",
        "SumNumbers",
        2,
        1,
        6.0,
        unit="messages/s",
        units_per_call=MANY,
    ),
    Work(
        "bidi",
        "bidirectional echo of 1,000 messages",
        "EchoNumbers",
        2,
        1,
        8.0,
        unit="messages/s",
        units_per_call=MANY,
    ),
    Work("bytes", "1 MiB of bytes echoed", "EchoBytes", 4, 2, 3.0),
    Work(
        "block",
        "100 in flight that block 10 ms each",
        "Block",
        4,
        25,
        0.98,
        metric=Metric.SHARE_OF_IDEAL,
        ideal=WORKERS / 0.010,
    ),
)
