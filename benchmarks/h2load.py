"""One run of h2load against one method, read strictly.

h2load counts HTTP statuses, and in gRPC an error is an HTTP 200 as well. So a run only counts
when every call succeeded and when the DATA frames held, to the byte, what the checked
answers hold: an error answered fast carries no message and is caught here.
"""

import math
import re
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# What grpcio's own client sends with each call, so that both servers do their real work on it.
_HEADERS = (
    "content-type: application/grpc",
    "te: trailers",
    "user-agent: h2load nghttp2",
    "grpc-accept-encoding: identity, deflate, gzip",
)
_TIMEOUT_SECONDS = 300

_RATE = re.compile(r"^finished in [^,]+, ([\d.]+) req/s", re.MULTILINE)
_REQUESTS = re.compile(
    r"^requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, "
    r"(\d+) failed, (\d+) errored, (\d+) timeout",
    re.MULTILINE,
)
_DATA = re.compile(r"\((\d+)\) data$", re.MULTILINE)


class LoadError(Exception):
    """A run that must not be counted."""


@dataclass(frozen=True)
class Load:
    """What to put on a server.

    Attributes:
        path: `/package.Service/Method`.
        body: a file of one or more length-prefixed messages, sent by each call.
        answer_bytes: DATA bytes of each right answer, prefixes included; None accepts any end
            of a call, a reset too, and only wants every call to end.
        connections: HTTP/2 connections.
        streams: calls in flight on each.
        headers: request headers besides those of every gRPC call ("name: value").
    """

    path: str
    body: Path
    answer_bytes: int | None
    connections: int
    streams: int
    headers: tuple[str, ...] = ()

    def command(self, calls: int | str, port: int | str, body: str | None = None) -> list[str]:
        """Returns the h2load command for `calls` calls; `body` replaces the file's path."""
        command = ["h2load", "-n", str(calls), "-c", str(self.connections)]
        command += ["-m", str(self.streams), "-t", "1", "-d", body or str(self.body)]
        for header in (*_HEADERS, *self.headers):
            command += ["-H", header]
        return [*command, f"http://127.0.0.1:{port}{self.path}"]


@dataclass(frozen=True)
class Result:
    """A run that counts.

    Attributes:
        calls: how many were made.
        rate: calls a second, connection set-up included.
        median_us: median microseconds from a call's start to its end; 0 unless asked for.
    """

    calls: int
    rate: float
    median_us: float = 0.0


def require() -> str:
    """Returns h2load's version.

    Raises:
        LoadError: h2load is not installed.
    """
    if shutil.which("h2load") is None:
        raise LoadError("h2load is not on the PATH: install Debian's nghttp2-client")
    completed = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True)
    return completed.stdout.strip()


def run(load: Load, port: int, calls: int, latencies: bool = False) -> Result:
    """Makes `calls` calls and waits for the last answer.

    Args:
        load: what to put on the server.
        port: of the server, on 127.0.0.1.
        calls: rounded up to a multiple of the calls in flight.
        latencies: also log each call's time (costs the client a little).

    Raises:
        LoadError: a call failed, or the answers held other than `load.answer_bytes` each.
    """
    in_flight = load.connections * load.streams
    calls = max(math.ceil(calls / in_flight), 1) * in_flight
    command = load.command(calls, port)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "calls.log")
        if latencies:
            command[1:1] = ["--log-file", str(log)]
        try:
            completed = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"{load.path}: no end after {_TIMEOUT_SECONDS} s") from error
        rate = _read(load, calls, completed.stdout, completed.stderr)
        median = _median_microseconds(log) if latencies else 0.0
    return Result(calls, rate, median)


def _read(load: Load, calls: int, output: str, errors: str) -> float:
    requests, data, rate = (pattern.search(output) for pattern in (_REQUESTS, _DATA, _RATE))
    if requests is None or data is None or rate is None:
        raise LoadError(f"{load.path}: h2load said:\n{output}{errors}")
    counts = [int(count) for count in requests.groups()]
    if load.answer_bytes is None:
        if counts[:2] != [calls, calls]:
            raise LoadError(f"{load.path}: {requests.group(0)}")
        return float(rate.group(1))
    if counts != [calls, calls, calls, 0, 0, 0]:
        raise LoadError(f"{load.path}: {requests.group(0)}")
    if int(data.group(1)) != calls * load.answer_bytes:
        raise LoadError(
            f"{load.path}: {calls} answers of {load.answer_bytes} bytes each were due, "
            f"{data.group(1)} bytes came: some calls did not get their answer"
        )
    return float(rate.group(1))


def _median_microseconds(log: Path) -> float:
    # Lines of start (µs since the epoch), HTTP status, microseconds.
    return statistics.median(int(line.split("\t")[2]) for line in log.read_text().splitlines())
