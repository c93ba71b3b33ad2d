"""The tests of transactions with other databases than SQLite's in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import run_tests
from test_atlas_postgres import socket_folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.timeout(300)

TESTS = ("test_testtools_server.py", "test_testtools_async.py")


def test_a_file_of_sqlite(tmp_path: Path) -> None:
    run_tests("settings_sqlite_file", *TESTS, SQLITE_FILE=str(tmp_path / "test.sqlite3"))


def test_postgresql(socket_folder: str) -> None:  # noqa: F811
    run_tests("settings_postgres", *TESTS, PGHOST=socket_folder)
