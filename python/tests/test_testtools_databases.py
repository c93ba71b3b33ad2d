"""The tests of transactions with other databases than SQLite's in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_atlas_postgres import socket_folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.timeout(300)

TESTS = [
    str(Path(__file__).with_name(name))
    for name in ("test_testtools_server.py", "test_testtools_async.py")
]


def run_tests(settings: str, **environment: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", f"--ds={settings}", *TESTS],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_a_file_of_sqlite(tmp_path: Path) -> None:
    run_tests("settings_sqlite_file", SQLITE_FILE=str(tmp_path / "test.sqlite3"))


def test_postgresql(socket_folder: str) -> None:  # noqa: F811
    run_tests("settings_postgres", PGHOST=socket_folder)
