"""The figures of a server as lines of text."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from django_grpc.management.top.client import Sample
from django_grpc.management.top.rates import method_rates, process_rates

# Seconds after which a process that says nothing is no longer believed.
_SILENCE = 3.0
# The least of the lines that the running calls get, however many methods there are.
_CALL_LINES = 8
_GAP = "  "


def tables(
    address: str, before: Sample | None, now: Sample, width: int, height: int | None = None
) -> list[str]:
    """Write a server's processes, methods and running calls.

    Args:
        address: Whose figures they are.
        before: What it said earlier; None: there are no rates yet.
        now: What it said last.
        width: Columns that a line may have.
        height: Lines that there may be. None: any number.
    """
    lines = [*_head(address, before, now), "", *_processes(before, now), ""]
    methods = _methods(before, now)
    calls = _calls(now)
    if height is not None:
        room = max(0, height - len(lines) - 1)
        for_calls = min(len(calls), max(_CALL_LINES, room - len(methods)))
        methods = _cut(methods, room - for_calls)
        calls = _cut(calls, room - len(methods))
    lines += [*methods, "", *calls]
    return [_printable(line)[:width] for line in lines][:height]


def _head(address: str, before: Sample | None, now: Sample) -> list[str]:
    processes = now.processes
    ready = sum(it["ready"] for it in processes)
    rates = process_rates(before, now)
    calls = sum(rate for rate, _ in rates.values())
    return [
        f"{address}: {len(processes)} process{'es' * (len(processes) != 1)}, {ready} ready",
        f"{calls:,.1f} calls/s, {_sum(processes, 'calls'):,} in flight, "
        f"{_sum(processes, 'queued'):,} queued, {_sum(processes, 'connections'):,} connections",
    ]


def _sum(processes: Iterable[dict[str, Any]], name: str) -> int:
    return sum(it[name] for it in processes)


def _processes(before: Sample | None, now: Sample) -> list[str]:
    rates = process_rates(before, now)
    rows = []
    for it in sorted(now.processes, key=lambda it: it["started"]):
        calls, cpu = rates.get(it["pid"], (0.0, 0.0))
        state = "ready" if it["ready"] else "not ready"
        if it["silent"] > _SILENCE:
            state = f"silent {it['silent']:.0f}s"
        rows.append(
            (
                str(it["pid"]),
                state,
                f"{cpu * 100:.0f}%",
                f"{it['resident_bytes'] / 2**20:.0f}M",
                f"{it['connections']:,}",
                f"{calls:,.1f}",
                f"{it['calls']:,}",
                f"{it['queued']:,}",
                *(str(it[name]) for name in ("busy", "idle", "held", "loop_calls")),
            )
        )
    head = (
        "PID", "STATE", "CPU", "MEMORY", "CONNS", "CALLS/S", "IN FLIGHT", "QUEUED",
        "BUSY", "IDLE", "HELD", "LOOP",
    )  # fmt: skip
    return _columns(head, rows, left={1})


def _methods(before: Sample | None, now: Sample) -> list[str]:
    rows = [
        (
            it.name,
            f"{it.calls:,.1f}",
            f"{it.faults:,.1f}",
            _milliseconds(it.mean),
            _milliseconds(it.slow, "<"),
            f"{it.in_flight:,}",
        )
        for it in method_rates(before, now)
        if it.calls or it.in_flight
    ]
    head = ("METHOD", "CALLS/S", "FAULTS/S", "MEAN", "95%", "IN FLIGHT")
    return _columns(head, rows, left={0})


def _calls(now: Sample) -> list[str]:
    rows = [
        (
            it["method"],
            it["peer"],
            it["stage"],
            _seconds(it["age"]),
            "-" if it["deadline"] is None else _seconds(it["deadline"]),
            str(it["pid"]),
            str(it["thread"] or "-"),
        )
        for it in sorted(now.calls, key=lambda it: -it["age"])
    ]
    head = ("RUNNING CALL", "PEER", "STAGE", "AGE", "DEADLINE", "PID", "THREAD")
    lines = _columns(head, rows, left={0, 1, 2})
    hidden = _sum(now.processes, "calls") - len(rows)
    if rows and hidden > 0:
        lines.append(f"and some {hidden:,} more")
    return lines


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        _GAP.join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _cut(lines: list[str], room: int) -> list[str]:
    if len(lines) <= room:
        return lines
    if room < 2:
        return lines[: max(0, room)]
    return [*lines[: room - 1], f"and {len(lines) - room + 1:,} more"]


def _milliseconds(seconds: float | None, sign: str = "") -> str:
    if seconds is None:
        return "-"
    if math.isinf(seconds):
        return "> all"
    return f"{sign}{seconds * 1e3:,.1f}ms"


def _seconds(seconds: float) -> str:
    if abs(seconds) < 100:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def _printable(line: str) -> str:
    """Keep a path that a client made up from steering the terminal."""
    if line.isprintable():
        return line
    return "".join(it if it.isprintable() else "?" for it in line)
