"""Tests of the serializers on a real PostgreSQL, with the columns that only it has."""

from __future__ import annotations

import pytest
from harness import run_tests
from test_atlas_postgres import socket_folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.timeout(300)


def test_rows_of_postgresql_are_what_serialize_model_makes(
    socket_folder: str,  # noqa: F811
) -> None:
    run_tests("settings_postgres", "test_serializers_queryset.py", PGHOST=socket_folder)


def test_the_law(socket_folder: str) -> None:  # noqa: F811
    run_tests("settings_postgres_fields", "test_serializers_law.py", PGHOST=socket_folder)
