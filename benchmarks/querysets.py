#!/usr/bin/env python3
"""Measures `serialize_queryset` against django-grpc's way: instances and `serialize_model`.

As `run.py`, with the same project, peer and checks, but ours answers the list and the stream from
querysets (`project/cities/queryset_servicers.py`). Two ratios are printed for each: of the rows
per second, which h2load on the same machine holds down, and of the processor time that the
server spends on a row.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import environments
import h2load
import servers
from run import Side, calibrate, serving
from works import WORKS

_WORKS = [work for work in WORKS if work.name in ("list", "server-stream")]


@contextmanager
def _servicer(path: str) -> Iterator[None]:
    """Lets servers that are started meanwhile serve another servicer."""
    os.environ["BENCH_SERVICER"] = path
    try:
        yield
    finally:
        del os.environ["BENCH_SERVICER"]


def _compare(ours: Side, peer: Side, rounds: int, seconds: float) -> None:
    print("| work | ours, rows/s | peer | ratio | ours, CPU µs/row | peer | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for work in _WORKS:
        calls = [calibrate(side, work, seconds) for side in (ours, peer)]
        pairs = [
            (ours.measure(work, calls[0]), peer.measure(work, calls[1])) for _ in range(rounds)
        ]
        rates = [statistics.median(pair[side].value for pair in pairs) for side in (0, 1)]
        costs = [statistics.median(pair[side].cpu_us for pair in pairs) for side in (0, 1)]
        rate_ratio = statistics.median(one.value / other.value for one, other in pairs)
        cost_ratio = statistics.median(other.cpu_us / one.cpu_us for one, other in pairs)
        print(
            f"| {work.title} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rate_ratio:.1f} | "
            f"{costs[0]:.2f} | {costs[1]:.2f} | {cost_ratio:.1f} |",
            flush=True,
        )


def main() -> None:
    """Runs the comparison and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round (default 2)")
    parser.add_argument("--ours", type=Path, metavar="PYTHON", help="use this environment for ours")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="and this for the peer")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        h2load.require()
        python = options.ours.absolute() if options.ours else environments.ours(None)
        other = options.peer.absolute() if options.peer else environments.peer()
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            with (
                serving("django-grpc", other, Path(folder, "peer")) as peer,
                _servicer("cities.queryset_servicers.grpc_hook"),
                serving("ours", python, Path(folder, "ours")) as ours,
            ):
                _compare(ours, peer, options.rounds, options.seconds)
    except (environments.EnvironmentSetupError, h2load.LoadError, servers.ServerError) as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
