#!/usr/bin/env python3
"""Measures worker processes: `make bench-workers`.

Two questions. How evenly are connections, and the calls on them, spread over the workers? And how
many more calls with the ORM do two workers carry than one? For the second a server with one
process and one with several are loaded in turns by h2load, and the figure is the median of the
ratios of neighbouring rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import h2load
import report
import run
import servers
from works import WORKS, Work

_CLIENTS = (8, 64, 512)
_SAMPLE_SECONDS = 0.1
_TARGET = 1.7


@dataclass(frozen=True)
class Spread:
    """What each worker had of a load.

    Attributes:
        clients: connections, each of which makes one call after the other.
        connections: of each worker, at most.
        calls: that each worker answered.
    """

    clients: int
    connections: list[int]
    calls: list[int]

    def row(self) -> str:
        """The line of the table."""
        return (
            f"| {self.clients} | {_share(self.connections)} | {_share(self.calls)} | "
            f"{' '.join(str(count) for count in self.connections)} |"
        )


def _share(counts: list[int]) -> str:
    mean = statistics.mean(counts) or 1
    return f"{min(counts) / mean:.2f} to {max(counts) / mean:.2f}"


@contextmanager
def _serving(python: Path, folder: Path, workers: int) -> Iterator[tuple[run.Side, int]]:
    port = servers.free_port()
    flags = ("--workers", str(workers), "--metrics", f"127.0.0.1:{port}")
    with run.serving(f"{workers} workers", python, folder, flags) as side:
        yield side, port


def _processes(port: int) -> dict[int, dict[str, Any]]:
    answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/calls").read()
    return {process["pid"]: process for process in json.loads(answer)["processes"]}


def _measure_spread(side: run.Side, port: int, clients: int, calls: int) -> Spread:
    work = _work("unary")
    load = h2load.Load(
        path=f"/bench.Bench/{work.method}",
        body=side.folder / f"{work.method}.bin",
        answer_bytes=side.answer_bytes[work.method],
        connections=clients,
        streams=1,
    )
    before = _processes(port)
    most = dict.fromkeys(before, 0)
    done = threading.Event()

    def look() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            for pid, process in _processes(port).items():
                most[pid] = max(most[pid], process["connections"])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        h2load.run(load, side.server.port, calls)
    finally:
        done.set()
        looking.join()
    after = _processes(port)
    answered = [after[pid]["calls_ended"] - before[pid]["calls_ended"] for pid in before]
    return Spread(clients, list(most.values()), answered)


def _work(name: str) -> Work:
    return next(work for work in WORKS if work.name == name)


def _compare(
    one: run.Side, several: run.Side, work: Work, rounds: int, seconds: float
) -> tuple[list[float], list[float]]:
    calls = {side.name: run.calibrate(side, work, seconds) for side in (one, several)}
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, found in zip((one, several), rates, strict=True):
            found.append(side.measure(work, calls[side.name]).value)
    return rates


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="against one (default 2)")
    parser.add_argument("--spread-workers", type=int, default=4, help="to spread over (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round, about")
    parser.add_argument("--work", default="get", choices=[work.name for work in WORKS])
    parser.add_argument("--quick", action="store_true", help="shows that it works")
    parser.add_argument("--wheel", type=Path, help="our wheel (default: the newest in dist/)")
    parser.add_argument("--ours", type=Path, metavar="PYTHON", help="use this environment")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 0.5
    return options


def _report_spread(options: argparse.Namespace, python: Path, folder: Path) -> None:
    count = options.spread_workers
    print(f"\nShares of {count} workers; 1.00 is an even one.\n")
    print("| clients | connections | calls | connections of each |\n| ---: | --- | --- | --- |")
    with _serving(python, folder, count) as (side, port):
        for clients in _CLIENTS:
            # For long enough to be looked at.
            calls = max(20_000, clients * (5 if options.quick else 50))
            print(_measure_spread(side, port, clients, calls).row(), flush=True)


def _report_scaling(options: argparse.Namespace, python: Path, folder: Path) -> None:
    work = _work(options.work)
    with (
        _serving(python, folder / "one", 1) as (one, _),
        _serving(python, folder / "several", options.workers) as (several, _),
    ):
        rates = _compare(one, several, work, options.rounds, options.seconds)
    ratios = [b / a for a, b in zip(*rates, strict=True)]
    print(f"\n{work.title}, {options.rounds} pairs of rounds of {options.seconds:g} s\n")
    print(f"| 1 process | {options.workers} workers | ratio | least | greatest | target |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    medians = [statistics.median(found) for found in (*rates, ratios)]
    print(
        f"| {medians[0]:,.0f} {work.unit} | {medians[1]:,.0f} {work.unit} | {medians[2]:.2f} | "
        f"{min(ratios):.2f} | {max(ratios):.2f} | {_TARGET} |"
    )


def main() -> None:
    """Runs the benchmark and prints the tables."""
    options = _options()
    try:
        h2load.require()
        python = options.ours.absolute() if options.ours else environments.ours(options.wheel)
        print(report.machine())
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            _report_spread(options, python, folder / "spread")
            _report_scaling(options, python, folder)
    except (environments.EnvironmentSetupError, h2load.LoadError, servers.ServerError) as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
