#!/usr/bin/env python3
"""Shows that a server is after any load what it was before: `make waves`.

Calls of all kinds come in waves (`wave_client.py`): hundreds of streams that stall together and
end together, in either direction, some of them cancelled, some lost with their connection, and
brief calls beside them, some of which fail or run out of time. After each wave nothing happens
for longer than any timeout in the engine. Then the server is measured side by side with one that
has just been started, in turns: trivial calls, calls that block for 10 ms, threads, descriptors;
and its memory with what it was in the first half of the waves. Exit status 1 when it falls behind
by more than 5 % of each of three fresh servers.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import h2load
import servers
from run import Side, calibrate, serving
from works import WORKS, Work

_HERE = Path(__file__).parent
#: Longer than the engine's timers: 5 s until a surplus thread leaves, 2 s until memory is given
#: back.
_PAUSE_SECONDS = 8.0
#: What a server may fall behind a fresh one, and its memory may grow from wave to wave.
_TOLERANCE = 0.05
#: Pairs of rounds of each work. The median of their ratios counts: what else the machine does comes
#: and goes within seconds, so it meets both rounds of most pairs if they are brief.
_ROUNDS = 31
#: How many fresh servers one that falls behind is compared with. Two that start alike may differ
#: for all their lives: on few processors it counts where their threads come to run. One that is
#: worn is behind each of them.
_FRESH_SERVERS = 3
#: Waves that may take more memory, at least; in a longer run it is the first half of them.
_FILLING_WAVES = 4
_WORKS = [work for work in WORKS if work.name in ("unary", "block")]


@dataclass
class Finding:
    """What one wave left.

    Attributes:
        rates: of each work, ours after the waves as a share of each fresh server's, in turn.
        threads: more than the fresh server has.
        open_files: more than the fresh server has.
        resident_kib: of the server.
    """

    rates: dict[str, list[float]]
    threads: int
    open_files: int
    resident_kib: int

    def complaints(self, filled_kib: int) -> list[str]:
        """What is not as it should be.

        Args:
            filled_kib: What was resident at most when pools, caches and the allocator's arenas had
                filled.
        """
        found = [
            f"{name}: {_written(rates)} of what fresh servers do"
            for name, rates in self.rates.items()
            if _is_behind(rates)
        ]
        if self.threads > 0:
            found.append(f"{self.threads} threads more than a fresh server has")
        if self.open_files > 0:
            found.append(f"{self.open_files} open files more than a fresh server has")
        if self.resident_kib > filled_kib * (1 + _TOLERANCE):
            found.append(f"{self.resident_kib:,} KiB, after the first waves {filled_kib:,}")
        return found


def _is_behind(rates: list[float]) -> bool:
    return max(rates) < 1 - _TOLERANCE


def _written(rates: list[float]) -> str:
    return ", ".join(f"{rate:.3f}" for rate in rates)


def _wave(side: Side, streams: int) -> None:
    completed = subprocess.run(
        [str(side.python), str(_HERE / "wave_client.py"), side.server.target, str(streams)],
        env=servers.environment(side.folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if completed.returncode != 0:
        raise servers.ServerError(completed.stderr.strip())


def _compare(side: Side, fresh: Side, work: Work, seconds: float) -> float:
    """The side's rate as a share of the fresh one's."""
    calls = calibrate(fresh, work, seconds)
    calibrate(side, work, seconds)
    shares: list[float] = []
    for number in range(_ROUNDS):
        rates = [0.0, 0.0]
        pair = ((0, side), (1, fresh)) if number % 2 else ((1, fresh), (0, side))
        for index, each in pair:
            rates[index] = each.measure(work, calls).value
        shares.append(rates[0] / rates[1])
    return statistics.median(shares)


def _figures(side: Side) -> dict[str, Any]:
    # Threads and connections of the load before are to be gone.
    time.sleep(_PAUSE_SECONDS)
    return side.probe()


def _measure(side: Side, python: Path, folder: Path, seconds: float) -> Finding:
    resident = side.server.memory().resident
    rates: dict[str, list[float]] = {work.name: [] for work in _WORKS}
    for number in range(_FRESH_SERVERS):
        if number and not any(map(_is_behind, rates.values())):
            break
        with serving("fresh", python, folder.with_name(f"{folder.name}-{number}")) as fresh:
            # All of them, so that the fresh server has the threads that they take.
            for work in _WORKS:
                rates[work.name].append(_compare(side, fresh, work, seconds))
            ours, theirs = _figures(side), fresh.probe()
    return Finding(
        rates,
        ours["threads"] - theirs["threads"],
        ours["open_files"] - theirs["open_files"],
        resident,
    )


def _run(python: Path, options: argparse.Namespace) -> list[str]:
    complaints: list[str] = []
    findings: list[Finding] = []
    with (
        tempfile.TemporaryDirectory(prefix="waves-") as name,
        serving("ours", python, Path(name, "ours")) as side,
    ):
        for number in range(1, options.waves + 1):
            _wave(side, options.streams)
            time.sleep(_PAUSE_SECONDS)
            finding = _measure(side, python, Path(name, f"fresh-{number}"), options.seconds)
            findings.append(finding)
            filling = findings[: max(_FILLING_WAVES, options.waves // 2)]
            wrong = finding.complaints(max(it.resident_kib for it in filling))
            complaints += [f"wave {number}: {line}" for line in wrong]
            rates = "; ".join(f"{name} {_written(it)}" for name, it in finding.rates.items())
            print(
                f"wave {number:>2}: {rates} of fresh; threads {finding.threads:+}, files "
                f"{finding.open_files:+}, {finding.resident_kib:,} KiB"
                + "".join(f"\n         {line}" for line in wrong),
                flush=True,
            )
        side.check()
    return complaints


def main() -> None:
    """Runs the waves; exit status 1 when the server falls behind a fresh one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--waves", type=int, default=20, help="default 20")
    parser.add_argument("--streams", type=int, default=400, help="streams in a wave, default 400")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a round, default 0.2")
    parser.add_argument("--wheel", type=Path, help="our wheel (default: the newest in dist/)")
    parser.add_argument("--python", type=Path, help="use this environment instead of making one")
    options = parser.parse_args()
    if options.waves < 1 or options.streams < 3 or options.seconds <= 0:
        parser.error("--waves and --seconds must be positive, --streams 3 or more")
    # So that an ended run ends its servers as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        h2load.require()
        python = options.python.absolute() if options.python else environments.ours(options.wheel)
        complaints = _run(python, options)
    except (
        environments.EnvironmentSetupError,
        h2load.LoadError,
        servers.ServerError,
        json.JSONDecodeError,
    ) as error:
        sys.exit(f"waves: {error}")
    if complaints:
        sys.exit("\n".join(["waves: not as a fresh server", *complaints]))
    print(f"{options.waves} of {options.waves} waves: as a fresh server")


if __name__ == "__main__":
    main()
