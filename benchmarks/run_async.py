#!/usr/bin/env python3
"""Measures async methods on our engine, with signals, against grpc.aio without.

    python benchmarks/run_async.py [--rounds 3] [--only Unary]

Run it with a Python that has this package and its dependencies. Both servers are this machine's,
loaded in turns by h2load (Debian: nghttp2-client). Answers are checked to the byte; a rate is the
median of the rounds, and a row ends with ours divided by the peer's.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h2load

_SERVER = Path(__file__).with_name("async_server.py")
_MESSAGE = b"\x0a\x05hello"  # a StringValue
_FRAME = b"\0" + len(_MESSAGE).to_bytes(4, "big") + _MESSAGE
_COUNT = b"\0\0\0\0\x06\x0a\x041000"


@dataclass(frozen=True)
class Work:
    """One row of the table."""

    method: str
    requests: int  # messages of a call
    answer: int  # bytes
    units: int  # what a call counts for
    calls: int  # of a round, for ours; a sixth of it for the peer
    streams: int = 25
    connections: int = 4
    is_latency: bool = False


WORKS = {
    "unary": Work("Unary", 1, len(_FRAME), 1, 40_000),
    "unary, one at a time (µs)": Work(
        "Unary", 1, len(_FRAME), 1, 6_000, streams=1, connections=1, is_latency=True
    ),
    "server stream": Work("Stream", 1, 1000 * len(_FRAME), 1000, 300, streams=5),
    "client stream": Work("Collect", 1000, len(_COUNT), 1000, 300, streams=5),
    "both streamed": Work("Echo", 1000, 1000 * len(_FRAME), 1000, 200, streams=5),
    "10,000 calls that sleep 1 s (s)": Work(
        "Sleep", 1, len(_FRAME), 1, 10_000, streams=100, connections=100
    ),
}


@dataclass
class Side:
    """A server that runs."""

    name: str
    process: "subprocess.Popen[str]"
    port: int

    def memory(self) -> tuple[int, int]:
        """Return resident memory in KiB, now and at most, and threads."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmRSS"].split()[0]), int(fields["Threads"])

    def load(self, work: Work, body: Path) -> h2load.Load:
        """Return the work as h2load shall put it on this server."""
        # grpc.aio refuses some of ten thousand calls at once.
        is_lenient = self.name == "grpcio" and work.method in ("Sleep", "Idle")
        return h2load.Load(
            path=f"/bench.Async/{work.method}",
            body=body,
            answer_bytes=None if is_lenient else work.answer,
            connections=work.connections,
            streams=work.streams,
        )


@contextmanager
def _serving(name: str) -> Iterator[Side]:
    with subprocess.Popen(
        [sys.executable, str(_SERVER), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield Side(name, process, int(process.stdout.readline()))
        process.stdin.close()


def _measure(side: Side, work: Work, body: Path) -> float:
    if work.method == "Sleep":
        return 10_000 / h2load.run(side.load(work, body), side.port, 10_000).rate
    calls = work.calls if side.name == "ours" else work.calls // 6
    result = h2load.run(side.load(work, body), side.port, calls, work.is_latency)
    return result.median_us if work.is_latency else result.rate * work.units


def _measure_idle(side: Side, body: Path, streams: int = 10_000) -> str:
    before, threads = side.memory()
    work = Work("Idle", 1, len(_FRAME), 1, streams, streams=100, connections=streams // 100)
    runner = threading.Thread(target=h2load.run, args=(side.load(work, body), side.port, streams))
    runner.start()
    most, most_threads = before, threads
    while runner.is_alive():
        time.sleep(0.2)
        now, now_threads = side.memory()
        most, most_threads = max(most, now), max(most_threads, now_threads)
    runner.join()
    return f"{(most - before) / streams:.1f} KiB a stream, {most_threads - threads} more threads"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="a method")
    options = parser.parse_args()
    h2load.require()
    with tempfile.TemporaryDirectory() as folder, _serving("ours") as ours:
        with _serving("grpcio") as peer:
            bodies = {}
            for count in {work.requests for work in WORKS.values()}:
                bodies[count] = Path(folder, f"{count}.bin")
                bodies[count].write_bytes(_FRAME * count)
            for name, work in WORKS.items():
                if options.only not in (None, work.method):
                    continue
                values: dict[str, list[float]] = {"ours": [], "grpcio": []}
                for _ in range(options.rounds):
                    for side in (ours, peer):
                        values[side.name].append(_measure(side, work, bodies[work.requests]))
                mine, theirs = (statistics.median(it) for it in values.values())
                is_time = work.is_latency or work.method == "Sleep"
                ratio = theirs / mine if is_time else mine / theirs
                print(f"{name:34} {mine:12,.1f} {theirs:12,.1f} {ratio:8.1f} x", flush=True)
            for side in (ours, peer):
                print(f"{side.name}: {side.memory()[0] / 1024:.0f} MiB resident")
                if options.only in (None, "Idle"):
                    print(f"{side.name}: {_measure_idle(side, bodies[1])}", flush=True)


if __name__ == "__main__":
    main()
