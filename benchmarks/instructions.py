#!/usr/bin/env python3
"""Counts the instructions that our server spends on a call, against an older build of it.

    python benchmarks/instructions.py --before OLD/bin/python [--ours NEW/bin/python] [--only unary]

Processor time is noisy on a machine that others use; what callgrind counts is not: two runs differ
by 1 to 2 %. So it finds a regression that no benchmark shows. It tells nothing of waiting, of
system calls or of caches. Needs valgrind and h2load (Debian: valgrind, nghttp2-client).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import environments
import h2load
import servers
from works import WORKS, Work

# Calls that are counted, by a work's name: enough of them, at a fiftieth of the usual speed.
_CALLS = {
    "unary": 4_000,
    "latency": 3_000,
    "get": 400,
    "list": 20,
    "server-stream": 20,
    "client-stream": 40,
    "bidi": 20,
    "bytes": 40,
}
_WARM_UP_SHARE = 0.1
#: So that each worker thread has answered one that asks the database.
_CALLS_FOR_CONNECTIONS = 200
_WORKS = {work.name: work for work in WORKS}


def count(python: Path, work: Work) -> float:
    """Return the instructions of a call, all threads of the server together."""
    calls = _CALLS[work.name]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        profile = folder / "callgrind.out"
        callgrind = [
            *("valgrind", "--tool=callgrind", "--instr-atstart=no"),
            f"--callgrind-out-file={profile}",
        ]
        with servers.running(python, folder, under=callgrind) as server:
            sizes = json.loads(servers.ask(python, folder, "check", server.target, name))

            def load(work: Work) -> h2load.Load:
                return h2load.Load(
                    path=f"/bench.Bench/{work.method}",
                    body=folder / f"{work.method}.bin",
                    answer_bytes=sizes[work.method],
                    connections=work.connections,
                    streams=work.streams,
                )

            # A thread that has a connection to the database open looks after it in each later call
            # (4,000 instructions): left to chance is else which threads do.
            h2load.run(load(_WORKS["get"]), server.port, _CALLS_FOR_CONNECTIONS)
            h2load.run(load(work), server.port, round(calls * _WARM_UP_SHARE))
            _instrument(server, "on")
            made = h2load.run(load(work), server.port, calls).calls
            _instrument(server, "off")
        found = re.search(r"^totals: (\d+)", profile.read_text(), re.MULTILINE)
    if found is None:
        raise servers.ServerError("callgrind has written no totals")
    return int(found[1]) / made


def _instrument(server: servers.Server, switch: str) -> None:
    subprocess.run(
        ["callgrind_control", "-i", switch, str(server.process.pid)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--ours", type=Path, metavar="PYTHON", help="default: with dist/'s wheel")
    parser.add_argument("--only", action="append", choices=_CALLS, metavar="WORK")
    options = parser.parse_args()
    try:
        h2load.require()
        ours = options.ours.absolute() if options.ours else environments.ours(None)
        print("| work | before | now | ratio |\n| --- | --- | --- | --- |")
        for work in WORKS:
            if work.name not in (options.only or _CALLS):
                continue
            before, now = (count(it, work) for it in (options.before.absolute(), ours))
            print(f"| {work.title} | {before:,.0f} | {now:,.0f} | {now / before:.3f} |", flush=True)
    except (environments.EnvironmentSetupError, h2load.LoadError, servers.ServerError) as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
