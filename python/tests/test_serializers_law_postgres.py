"""The law of the serializers on PostgreSQL, with the columns that only it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_atlas_postgres import socket_folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.timeout(300)


def test_the_law(socket_folder: str) -> None:  # noqa: F811
    tests = Path(__file__).with_name("test_serializers_law.py")
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "--ds=settings_postgres_fields", str(tests)],
        env={**os.environ, "PGHOST": socket_folder},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
