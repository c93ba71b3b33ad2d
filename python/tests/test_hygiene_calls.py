"""Database connections are seen to around everything that runs for a call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_atlas_postgres import socket_folder  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def outcomes(age: str, **environment: str) -> dict[str, list[int]]:
    """Return how many calls failed, before the drop and in each round after it.

    What they said is in the output of a test that fails.
    """
    completed = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hygiene_calls.py"))],
        env={**os.environ, "AGE": age, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    lines: list[Any] = [json.loads(line) for line in completed.stdout.splitlines()]
    assert len(lines) > 30
    print(completed.stderr)
    return dict(lines)


def check(found: dict[str, list[int]], age: str) -> None:
    # Of threads that a method has started nobody knows before one is used: each may cost a call, or
    # several that come at once, but not for ever.
    for name in [it for it in found if "thread of a coroutine's own" in it]:
        before, *_, last = found.pop(name)
        assert before == last == 0
    # A call may fail for each connection that was dropped, in the round that comes upon them: not
    # always the first, which may be served by a thread that had none. The first failure has the
    # others asked. With health checks none fails where a connection belongs to one call at a time.
    wrong = {name: it for name, it in found.items() if it[0] or sum(map(bool, it)) > 1}
    assert wrong == {}
    if age in {"0", "health"}:
        assert {name: it for name, it in found.items() if "sync" not in name and it[1]} == {}


@pytest.mark.parametrize("age", ["0", "none"])
def test_dropped_connections_of_sqlite(age: str, tmp_path: Path) -> None:
    check(outcomes(age, SQLITE_FILE=str(tmp_path / "database")), age)


@pytest.mark.parametrize("age", ["0", "none", "health"])
def test_dropped_connections_of_postgresql(
    age: str,
    socket_folder: str,  # noqa: F811
) -> None:
    check(outcomes(age, PGHOST=socket_folder), age)
