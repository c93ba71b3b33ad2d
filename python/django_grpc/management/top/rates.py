"""What happened between two looks at a server."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from django_grpc.management.top.client import Sample

# Statuses that are the server's fault, by OpenTelemetry's conventions.
_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)

_LINE = re.compile(r"(\w+)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class MethodRates(NamedTuple):
    """The calls of one method.

    Attributes:
        name: ``/package.Service/Method``; ``other`` for what nobody registered.
        calls: Calls a second that ended.
        faults: Those of them whose status is the server's fault.
        mean: Seconds that one took; None without any.
        slow: Seconds that 95 of 100 took at most, as far as the histogram can tell; None without
            any, infinite beyond its last bound.
        in_flight: Calls that run or wait now.
    """

    name: str
    calls: float
    faults: float
    mean: float | None
    slow: float | None
    in_flight: int


class _Method:
    """The numbers of a method in one sample."""

    def __init__(self) -> None:
        self.handled = 0.0
        self.faults = 0.0
        self.seconds = 0.0
        self.in_flight = 0
        self.buckets: dict[float, float] = {}


def method_rates(before: Sample | None, now: Sample) -> list[MethodRates]:
    """Return the rates of all methods, the busiest first."""
    old = {} if before is None else _methods(before.metrics)
    seconds = 0.0 if before is None else now.time - before.time
    rates = [
        _rates(name, old.get(name, _Method()), method, seconds)
        for name, method in _methods(now.metrics).items()
    ]
    return sorted(rates, key=lambda it: (-it.calls, -it.in_flight, it.name))


def process_rates(before: Sample | None, now: Sample) -> Mapping[int, tuple[float, float]]:
    """Return calls a second, and the part of a processor that was used, by process."""
    old: dict[int, dict[str, Any]] = (
        {} if before is None else {it["pid"]: it for it in before.processes}
    )
    rates = {}
    for process in now.processes:
        previous = old.get(process["pid"])
        if before is None or previous is None or now.time <= before.time:
            continue
        seconds = now.time - before.time
        rates[process["pid"]] = (
            max(0, process["calls_ended"] - previous["calls_ended"]) / seconds,
            max(0.0, process["cpu_seconds"] - previous["cpu_seconds"]) / seconds,
        )
    return rates


def _rates(name: str, old: _Method, now: _Method, seconds: float) -> MethodRates:
    if now.handled < old.handled:  # the server was started anew
        old = _Method()
    ended = now.handled - old.handled
    if seconds <= 0 or ended <= 0:
        return MethodRates(name, 0.0, 0.0, None, None, now.in_flight)
    return MethodRates(
        name,
        ended / seconds,
        max(0.0, now.faults - old.faults) / seconds,
        max(0.0, now.seconds - old.seconds) / ended,
        _quantile(0.95, old.buckets, now.buckets),
        now.in_flight,
    )


def _quantile(part: float, old: Mapping[float, float], now: Mapping[float, float]) -> float | None:
    counts = {bound: count - old.get(bound, 0.0) for bound, count in now.items()}
    total = max(counts.values(), default=0.0)
    if total <= 0:
        return None
    return min(bound for bound, count in counts.items() if count >= part * total)


def _methods(text: str) -> dict[str, _Method]:
    methods: dict[str, _Method] = {}
    for line in text.splitlines():
        if (match := _LINE.match(line)) is None:
            continue
        labels = dict(_LABEL.findall(match[2]))
        if "grpc_method" not in labels:
            continue
        service = labels.get("grpc_service", "")
        name = labels["grpc_method"]
        if service != "unknown":
            name = f"/{service}/{name}"
        _add(methods.setdefault(name, _Method()), match[1], labels, float(match[3]))
    return methods


def _add(method: _Method, metric: str, labels: Mapping[str, str], value: float) -> None:
    if metric == "grpc_server_handled_total":
        method.handled += value
        if labels.get("grpc_code") in _FAULTS:
            method.faults += value
    elif metric == "grpc_server_in_flight":
        method.in_flight += int(value)
    elif metric == "grpc_server_handling_seconds_sum":
        method.seconds += value
    elif metric == "grpc_server_handling_seconds_bucket":
        bound = float(labels["le"])
        method.buckets[bound] = method.buckets.get(bound, 0.0) + value
