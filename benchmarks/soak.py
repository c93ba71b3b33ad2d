#!/usr/bin/env python3
"""Shows that memory and references stay flat over 1,000,000 calls: `make soak`.

One server of the benchmark project takes calls of every kind, mostly trivial ones, in equal
blocks; about one call in eight is something else: rows from the database, the three
streaming kinds, servicers that raise or abort before or after their first answer, unknown
methods, messages that are no protobuf, deadlines that pass, streams cancelled in their middle.
Each block opens and closes its own connections. After each block the server's interpreter is
asked what it holds (`project/cities/probe.py`) and the kernel how much memory the process has.

The first blocks fill pools and caches and are not judged. Of those after, the least of the
first four is compared with the least of the last four, and nothing may have grown beyond the
bounds below, which lie far under what one leaked object per call of even the rarest kind
would add. Exit status 1 when something did.
"""

import argparse
import gzip
import json
import math
import signal
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import h2load
import servers

_BLOCKS = 20
_WARM_UP_BLOCKS = 4
# Python's sqlite3 forgets the cursors of a connection 200 at a time, so with eight threads'
# connections the counts rise and fall by up to 1,600: the least of a few blocks is steadier.
_WINDOW = 4

#: What may be added between the windows, 12 blocks of 50,000 calls apart in a full run.
_BOUNDS = {
    # KiB. Leaking 16 bytes on each call would add 9,400.
    "resident_kib": 8 * 1024,
    # Small objects. Leaking one on each call of the rarest kind would add 4,800.
    "allocated_blocks": 2_000,
    "gc_objects": 2_000,
    # References to any one object that lives for ever, or on a debug build to all together.
    "references": 1_000,
    "total_references": 3_000,
    # A pool may still grow to its full size; a thread or socket per call may not stay.
    "threads": 8,
    "open_files": 8,
    "connections_opened": 8,
}


@dataclass(frozen=True)
class Kind:
    """One kind of call in the mix.

    Attributes:
        method: what is called.
        body: the name of the request body, a file of client.py's or of `_write_bodies`.
        answer: the name of the answer in client.py's output; "" when no message may come, and
            None when any end will do.
        headers: request headers besides the usual.
        share: of the calls in a block.
    """

    method: str
    body: str
    answer: str | None = ""
    headers: tuple[str, ...] = ()
    share: float = 0.008


_KINDS = (
    Kind("GetCity", "GetCity", "GetCity", share=0.03),
    Kind("StreamCities", "few-cities", "few-cities"),
    Kind("SumNumbers", "few-sum", "few-sum"),
    Kind("EchoNumbers", "few-numbers", "few-numbers"),
    Kind("SayHello", "gzipped", "SayHello", ("grpc-encoding: gzip",)),
    Kind("Fail", "raise"),
    Kind("Fail", "abort"),
    # grpcio sends the message beside such a status; its client never shows it.
    Kind("Fail", "set-code", None),
    Kind("FailInStream", "raise-late", "raise-late"),
    Kind("FailInStream", "abort-late", "abort-late"),
    Kind("Missing", "SayHello"),
    Kind("SayHello", "malformed"),
    # The client is to give up by itself; whether the server resets the stream or answers
    # DEADLINE_EXCEEDED is its own affair.
    Kind("Block", "Block", None, ("grpc-timeout: 1m",)),
)
_CANCELLED_SHARE = 0.008
_TRIVIAL = Kind(
    "SayHello",
    "SayHello",
    "SayHello",
    share=1.0 - _CANCELLED_SHARE - sum(kind.share for kind in _KINDS),
)


@dataclass
class Soak:
    """The server under test and what its answers must look like."""

    python: Path
    folder: Path
    server: servers.Server
    answer_bytes: dict[str, int]

    def run_block(self, calls: int) -> int:
        """Makes about `calls` calls of all kinds; returns how many were made."""
        made = self._load(_TRIVIAL, calls, connections=4, streams=25)
        for kind in _KINDS:
            made += self._load(kind, calls, connections=2, streams=5)
        cancelled = max(round(calls * _CANCELLED_SHARE), 1)
        self.ask("cancel", self.server.target, str(cancelled))
        return made + cancelled

    def _load(self, kind: Kind, calls: int, connections: int, streams: int) -> int:
        due = kind.answer if kind.answer is None else self.answer_bytes.get(kind.answer, 0)
        load = h2load.Load(
            f"/bench.Bench/{kind.method}",
            self.folder / f"{kind.body}.bin",
            due,
            connections,
            streams,
            kind.headers,
        )
        return h2load.run(load, self.server.port, round(calls * kind.share)).calls

    def state(self) -> dict[str, int]:
        """Returns what the process holds, under the names of `_BOUNDS` and "references …"."""
        found: dict[str, Any] = json.loads(self.ask("probe", self.server.target))
        references: dict[str, int] = found.pop("references")
        memory = {"resident_kib": self.server.memory().resident}
        return memory | found | {f"references to {name}": n for name, n in references.items()}

    def ask(self, *arguments: str) -> str:
        """Runs client.py and returns what it printed."""
        return servers.ask(self.python, self.folder, *arguments)


@contextmanager
def _serving(python: Path) -> Iterator[Soak]:
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        with servers.running(python, folder) as server:
            soak = Soak(python, folder, server, {})
            soak.answer_bytes = json.loads(soak.ask("check", server.target, name))
            _write_bodies(folder)
            yield soak
            # The server must still be right after all of it.
            soak.ask("check", server.target, name)


def _write_bodies(folder: Path) -> None:
    hello = (folder / "SayHello.bin").read_bytes()
    # The prefix is a flag (1: compressed) and the payload's length.
    packed = gzip.compress(hello[5:])
    (folder / "gzipped.bin").write_bytes(struct.pack(">BI", 1, len(packed)) + packed)
    # No message: the tag's varint never ends.
    (folder / "malformed.bin").write_bytes(struct.pack(">BI", 0, 2) + b"\xff\xff")


def growth(states: list[dict[str, int]]) -> dict[str, int]:
    """Returns what each figure grew by, from the least after the warm-up to the last least."""
    first, last = states[_WARM_UP_BLOCKS:][:_WINDOW], states[-_WINDOW:]
    return {
        name: min(state[name] for state in last) - min(state[name] for state in first)
        for name in states[-1]
    }


def excesses(grown: dict[str, int]) -> list[str]:
    """Returns a line for each figure that grew beyond its bound."""
    bounds = {
        name: _BOUNDS["references" if name.startswith("references to ") else name] for name in grown
    }
    return [
        f"{name} grew by {grown[name]:,}, at most {bound:,} may be added"
        for name, bound in bounds.items()
        if grown[name] > bound
    ]


def _soak(soak: Soak, calls: int) -> list[str]:
    shown = ("resident_kib", "allocated_blocks", "gc_objects", "threads", "open_files")
    print("".join(f"{name:>17}" for name in ("calls", *shown)), flush=True)
    made = 0
    states: list[dict[str, int]] = []
    for _ in range(_BLOCKS):
        made += soak.run_block(math.ceil(calls / _BLOCKS))
        states.append(soak.state())
        cells = (made, *(states[-1][name] for name in shown))
        print("".join(f"{cell:>17,}" for cell in cells), flush=True)
    grown = growth(states)
    print(f"growth after {_WARM_UP_BLOCKS} blocks of warm-up:")
    for name, count in grown.items():
        print(f"  {name:<35}{count:>+9,}")
    return excesses(grown)


def main() -> None:
    """Runs the soak; exit status 1 when something grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--wheel", type=Path, help="our wheel (default: the newest in dist/)")
    parser.add_argument("--python", type=Path, help="use this environment instead of making one")
    options = parser.parse_args()
    if options.calls < _BLOCKS * 100:
        parser.error(f"--calls must be {_BLOCKS * 100:,} or more")
    # So that an ended soak ends its server as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        h2load.require()
        python = options.python.absolute() if options.python else environments.ours(options.wheel)
        with _serving(python) as soak:
            found = _soak(soak, options.calls)
    except (environments.EnvironmentSetupError, h2load.LoadError, servers.ServerError) as error:
        sys.exit(f"soak: {error}")
    if found:
        sys.exit("\n".join(["soak: not flat", *found]))
    print("flat")


if __name__ == "__main__":
    main()
