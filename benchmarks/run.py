#!/usr/bin/env python3
"""Measures our server against django-grpc on grpcio: `make bench`.

Both serve the same Django project (`project/`), each from an environment of its own, and are
loaded in turns by h2load: a round of ours, a round of the peer's, and again, so that whatever
else the machine does meets both. Needs Linux, h2load (Debian: nghttp2-client) and Python
3.11; the driver itself imports the standard library only. README.md explains the rules.
"""

import argparse
import datetime
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import h2load
import report
import servers
from works import WORKERS, WORKS, Metric, Work

_HERE = Path(__file__).parent
# A rate is believed, and a side warm, after a run of this share of a round's length.
_CALIBRATION_SHARE = 0.2
# How long both servers are left alone before their memory is read.
_IDLE_SECONDS = 6.0


@dataclass
class Side:
    """One of the two servers, with the bodies to send and the answer sizes due."""

    name: str
    python: Path
    folder: Path
    server: servers.Server
    answer_bytes: dict[str, int]

    def check(self) -> dict[str, int]:
        """Has grpcio's client call every method; returns the sizes of the answers."""
        output = self._ask("check", self.server.target, str(self.folder))
        sizes: dict[str, int] = json.loads(output)
        return sizes

    def probe(self) -> dict[str, Any]:
        """Returns what the server's interpreter holds."""
        found: dict[str, Any] = json.loads(self._ask("probe", self.server.target))
        return found

    def load(self, work: Work) -> h2load.Load:
        """Returns the work as h2load shall put it on this server."""
        return h2load.Load(
            path=f"/bench.Bench/{work.method}",
            body=self.folder / f"{work.method}.bin",
            answer_bytes=self.answer_bytes[work.method],
            connections=work.connections,
            streams=work.streams,
        )

    def measure(self, work: Work, calls: int) -> report.Round:
        """Runs one round of about `calls` calls."""
        before = self.server.cpu_seconds()
        latencies = work.metric is Metric.LATENCY
        result = h2load.run(self.load(work), self.server.port, calls, latencies)
        units = result.calls * work.units_per_call
        cpu_us = (self.server.cpu_seconds() - before) / units * 1e6
        value = result.median_us if latencies else result.rate * work.units_per_call
        return report.Round(value, cpu_us, result.calls)

    def _ask(self, *arguments: str) -> str:
        try:
            return servers.ask(self.python, self.folder, *arguments)
        except servers.ServerError as error:
            raise servers.ServerError(f"{self.name}: {error}") from error


@contextmanager
def serving(name: str, python: Path, folder: Path, flags: Sequence[str] = ()) -> Iterator[Side]:
    """Serves the project; `folder` is made for what belongs to this server."""
    folder.mkdir()
    with servers.running(python, folder, flags) as server:
        side = Side(name, python, folder, server, {})
        side.answer_bytes = side.check()
        yield side


def calibrate(side: Side, work: Work, seconds: float) -> int:
    """Warms a side up and returns the calls that it makes in about `seconds`."""
    calls = work.in_flight
    while True:
        result = h2load.run(side.load(work), side.server.port, calls)
        took = result.calls / result.rate
        if took >= seconds * _CALIBRATION_SHARE:
            return round(result.rate * seconds)
        # A short run tells little of the rate: approach the goal by steps of at most ten.
        calls = round(calls * min(10.0, 1.2 * seconds * _CALIBRATION_SHARE / took)) + 1


def _compare(sides: tuple[Side, Side], work: Work, rounds: int, seconds: float) -> report.Outcome:
    calls = [calibrate(side, work, seconds) for side in sides]
    ours, peer = sides
    pairs = [(ours.measure(work, calls[0]), peer.measure(work, calls[1])) for _ in range(rounds)]
    return report.Outcome(work, pairs)


def _measure(options: argparse.Namespace, pythons: tuple[Path, Path]) -> report.Results:
    works = [work for work in WORKS if not options.only or work.name in options.only]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        serving("ours", pythons[0], Path(folder, "ours")) as ours,
        serving("django-grpc", pythons[1], Path(folder, "peer")) as peer,
    ):
        if ours.answer_bytes != peer.answer_bytes:
            raise servers.ServerError("the two servers' answers differ in size")
        outcomes = []
        for work in works:
            outcome = _compare((ours, peer), work, options.rounds, options.seconds)
            print(" · ".join(outcome.row()), file=sys.stderr)
            outcomes.append(outcome)
        # What a server keeps, not what its allocator was just about to give back.
        time.sleep(_IDLE_SECONDS)
        memory = (ours.server.memory(), peer.server.memory())
        # Once more: neither server may have been broken by the load.
        for side in (ours, peer):
            side.check()
        about = _about(options, pythons)
        about["database_connections_opened"] = {
            side.name: side.probe()["connections_opened"] for side in (ours, peer)
        }
        about["commands"] = _commands(ours, works)
    return report.Results(outcomes, memory if len(works) == len(WORKS) else None, about)


def _about(options: argparse.Namespace, pythons: tuple[Path, Path]) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": report.machine(),
        "versions": {
            "ours": environments.versions(pythons[0]),
            "peer": environments.versions(pythons[1]),
            "load": {"h2load": h2load.require().removeprefix("h2load ")},
        },
        "settings": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "workers": WORKERS,
        },
    }


def _commands(side: Side, works: list[Work]) -> dict[str, Any]:
    """The commands as a reader can repeat them: no path of this machine in them."""
    return {
        "server": shlex.join(["python", *servers.server_arguments("PORT")]),
        "load": {
            work.name: shlex.join(side.load(work).command("CALLS", "PORT", f"{work.method}.bin"))
            for work in works
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_HelpFormatter)
    names = [work.name for work in WORKS]
    parser.add_argument("--rounds", type=int, help="pairs of rounds of each work (default 5)")
    parser.add_argument("--seconds", type=float, help="length of a round, about (default 3)")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 rounds of half a second: shows that it works"
    )
    parser.add_argument("--wheel", type=Path, help="our wheel (default: the newest in dist/)")
    parser.add_argument("--ours", type=Path, metavar="PYTHON", help="use this environment for ours")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="and this for the peer")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for results.md and results.json (default: benchmarks/ when all works are "
        "run in full, otherwise none)",
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 3.0)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if options.output is None and not options.quick and not options.only:
        options.output = _HERE
    return options


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of this file's description."""


def main() -> None:
    """Runs the benchmark and prints the table."""
    options = _options()
    # So that an ended benchmark ends its servers as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        h2load.require()
        pythons = (
            options.ours.absolute() if options.ours else environments.ours(options.wheel),
            options.peer.absolute() if options.peer else environments.peer(),
        )
        environments.warn_of_mix_up(pythons)
        results = _measure(options, pythons)
    except (environments.EnvironmentSetupError, h2load.LoadError, servers.ServerError) as error:
        sys.exit(f"benchmark: {error}")
    page = results.as_markdown()
    print(page)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.md").write_text(f"# Benchmark results\n\n{page}\n")
        text = json.dumps(results.as_json(), indent=2, ensure_ascii=False)
        (options.output / "results.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
