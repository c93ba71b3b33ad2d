#!/usr/bin/env python3
"""Measures what it costs to look at calls: `make bench-observability`.

One server of ours with nothing but its counters, and one for each way of looking, are loaded in
turns by h2load with the trivial call. The figure is the part of the first one's throughput that
each of the others keeps; the target for metrics and the watchdog together is 95 %.

That the counters themselves are always on is measured by `--baseline PYTHON`, an environment with a
build without them.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import environments
import h2load
import report
import run
import servers
from works import WORKS

_HERE = Path(__file__).parent
_SCRAPE_SECONDS = 1.0


@dataclass(frozen=True)
class Variant:
    """A way to look at calls.

    Attributes:
        name: the first column.
        flags: of `grpcserver`; `{socket}` becomes the path of a Unix socket.
        is_scraped: whether somebody asks for the metrics once a second.
    """

    name: str
    flags: tuple[str, ...] = ()
    is_scraped: bool = False


VARIANTS = (
    Variant("nothing but counters"),
    Variant("metrics, scraped once a second", ("--metrics", "127.0.0.1:{port}"), True),
    Variant(
        "metrics and watchdog",
        ("--metrics", "127.0.0.1:{port}", "--watchdog", "10"),
        True,
    ),
    Variant("access log, every call", ("--access-log", "text")),
)


@contextmanager
def _scraping(port: int) -> Iterator[None]:
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(_SCRAPE_SECONDS):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _serve(stack: ExitStack, variant: Variant, python: Path, folder: Path) -> run.Side:
    port = servers.free_port()
    flags = tuple(flag.format(port=port) for flag in variant.flags)
    side = stack.enter_context(run.serving(variant.name, python, folder, flags))
    if variant.is_scraped:
        stack.enter_context(_scraping(port))
    return side


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--ours", type=Path, metavar="PYTHON")
    parser.add_argument("--baseline", type=Path, metavar="PYTHON")
    options = parser.parse_args()
    h2load.require()
    python = options.ours.absolute() if options.ours else environments.ours(options.wheel)
    work = next(work for work in WORKS if work.name == "unary")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        sides = [
            _serve(stack, variant, python, folder / str(index))
            for index, variant in enumerate(VARIANTS)
        ]
        if options.baseline is not None:
            baseline = Variant("a build without counters")
            sides.append(_serve(stack, baseline, options.baseline.absolute(), folder / "baseline"))
        calls = [run.calibrate(side, work, options.seconds) for side in sides]
        rates: list[list[float]] = [[] for _ in sides]
        for number in range(options.rounds):
            # Each round begins with another one, so that none always follows the same.
            for offset in range(len(sides)):
                index = (number + offset) % len(sides)
                rates[index].append(sides[index].measure(work, calls[index]).value)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    print(f"{report.machine()}; {options.rounds} rounds of {options.seconds:g} s\n")
    print("| | calls/s | of the first | lowest and highest round |\n| --- | --- | --- | --- |")
    for side, own in zip(sides, rates, strict=True):
        ratios = [mine / first for mine, first in zip(own, rates[0], strict=True)]
        print(
            f"| {side.name} | {statistics.median(own):,.0f} | {statistics.median(ratios):.1%} "
            f"| {min(ratios):.1%} to {max(ratios):.1%} |"
        )


if __name__ == "__main__":
    main()
