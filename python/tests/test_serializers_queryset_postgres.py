"""The same tests of serialize_queryset on a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_atlas_postgres import socket_folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.timeout(300)


def test_rows_of_postgresql_are_what_serialize_model_makes(
    socket_folder: str,  # noqa: F811
) -> None:
    tests = Path(__file__).with_name("test_serializers_queryset.py")
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "--ds=settings_postgres", str(tests)],
        env={**os.environ, "PGHOST": socket_folder},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
