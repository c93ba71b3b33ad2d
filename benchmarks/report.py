"""Turns rounds into the table and the JSON file."""

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import Memory
from works import Metric, Work


@dataclass(frozen=True)
class Round:
    """One side's part of a pair of rounds.

    Attributes:
        value: units a second, or with Metric.LATENCY median microseconds.
        cpu_us: the server's processor time for each unit, in microseconds.
        calls: how many calls were made.
    """

    value: float
    cpu_us: float
    calls: int


@dataclass(frozen=True)
class Outcome:
    """All rounds of one work, as pairs of (ours, peer's)."""

    work: Work
    pairs: list[tuple[Round, Round]]

    @property
    def ours(self) -> float:
        """The median of our rounds."""
        return statistics.median(ours.value for ours, _ in self.pairs)

    @property
    def peer(self) -> float:
        """The median of the peer's rounds."""
        return statistics.median(peer.value for _, peer in self.pairs)

    @property
    def ratios(self) -> list[float]:
        """How many times better ours was, pair by pair (2.0: twice as good)."""
        if self.work.metric is Metric.LATENCY:
            return [peer.value / ours.value for ours, peer in self.pairs]
        return [ours.value / peer.value for ours, peer in self.pairs]

    @property
    def reached(self) -> bool:
        """Whether the median meets the work's target."""
        if self.work.metric is Metric.SHARE_OF_IDEAL:
            return self.ours / self.work.ideal >= self.work.target
        return statistics.median(self.ratios) >= self.work.target

    def row(self) -> list[str]:
        """The cells of this work in the table."""
        work = self.work
        ours, peer = (f"{_number(value)} {work.unit}" for value in (self.ours, self.peer))
        target = f"{work.target:g} x"
        if work.metric is Metric.SHARE_OF_IDEAL:
            ours += f" ({self.ours / work.ideal:.1%})"
            peer += f" ({self.peer / work.ideal:.1%})"
            target = f"{work.target:.0%} of {work.ideal:.0f}/s"
        ratios = self.ratios
        ratio = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f}-{max(ratios):.2f})"
        return [work.title, ours, peer, ratio, target, _yes(self.reached)]

    def cpu_row(self) -> list[str]:
        """The cells of this work in the table of processor time."""
        ours = statistics.median(ours.cpu_us for ours, _ in self.pairs)
        peer = statistics.median(peer.cpu_us for _, peer in self.pairs)
        unit = self.work.unit.removesuffix("s/s") if self.work.unit.endswith("/s") else "call"
        # The processor clock ticks every 10 ms: a short round on an idle server may read 0.
        ratio = f"{peer / ours:.2f} x" if ours else "-"
        return [self.work.title, f"{ours:.1f} µs/{unit}", f"{peer:.1f} µs/{unit}", ratio]

    def as_json(self) -> dict[str, Any]:
        """This work as plain values."""
        work, ratios = self.work, self.ratios
        sides = {
            side: {
                "median": statistics.median(part.value for part in rounds),
                "rounds": [part.value for part in rounds],
                "calls": [part.calls for part in rounds],
                "server_cpu_us_per_unit": [part.cpu_us for part in rounds],
            }
            for side, rounds in zip(("ours", "peer"), zip(*self.pairs, strict=True), strict=True)
        }
        return {
            "name": work.name,
            "title": work.title,
            "unit": work.unit,
            "metric": work.metric.value,
            "in_flight": work.in_flight,
            **sides,
            "ratio": {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
                "pairs": ratios,
            },
            "ideal": work.ideal or None,
            "target": work.target,
            "reached": self.reached,
        }


@dataclass(frozen=True)
class Results:
    """Everything that one run of the benchmark found.

    Attributes:
        outcomes: one for each work, in the order of the table.
        memory: (ours, peer's) after all works; None when only some were run.
        about: how and on what it was measured; goes to the JSON file as it is.
    """

    outcomes: list[Outcome]
    memory: tuple[Memory, Memory] | None
    about: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The results as plain values."""
        memory = None
        if self.memory is not None:
            ours, peer = self.memory
            memory = {
                "unit": "KiB",
                "ours": vars(ours),
                "peer": vars(peer),
                "ratio": peer.resident / ours.resident,
                "target": 1.0,
                "reached": ours.resident <= peer.resident,
            }
        works = [outcome.as_json() for outcome in self.outcomes]
        return {**self.about, "works": works, "memory": memory}

    def as_markdown(self) -> str:
        """The results as a page with the table that `make bench` prints."""
        header = ["work", "ours", "django-grpc", "ratio (min-max)", "at least", "reached"]
        rows = [outcome.row() for outcome in self.outcomes]
        if self.memory is not None:
            rows.append(_memory_row(*self.memory))
        cpu_header = ["server processor time", "ours", "django-grpc", "less by"]
        cpu_rows = [outcome.cpu_row() for outcome in self.outcomes]
        return "\n".join(
            [
                *self._facts(),
                "",
                _table(header, rows),
                "",
                _table(cpu_header, cpu_rows),
            ]
        )

    def _facts(self) -> list[str]:
        machine, versions, settings = (
            self.about[key] for key in ("machine", "versions", "settings")
        )
        named = (
            f"{side}: " + ", ".join(f"{name} {version}" for name, version in found.items())
            for side, found in versions.items()
        )
        return [
            f"{self.about['date']}, {machine['cores']} cores of {machine['cpu']}, "
            f"{machine['system']}; {settings['rounds']} pairs of rounds of about "
            f"{settings['seconds']:g} s, {settings['workers']} workers; medians, and the median, "
            "least and greatest of the pairs' ratios.",
            "",
            *(f"- {line}" for line in named),
        ]


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    memory = 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            memory = int(line.split()[1])
    # Not os.cpu_count(): a container may be given fewer than the machine has.
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"cores": cores, "cpu": cpu, "memory_kib": memory, "system": system}


def _memory_row(ours: Memory, peer: Memory) -> list[str]:
    cells = (
        f"{side.resident / 1024:.0f} MiB (peak {side.peak / 1024:.0f})" for side in (ours, peer)
    )
    ratio = f"{peer.resident / ours.resident:.2f} x"
    reached = _yes(ours.resident <= peer.resident)
    return ["resident memory after all of this, idle for 6 s", *cells, ratio, "1 x", reached]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([line(header), rule, *map(line, rows)])
