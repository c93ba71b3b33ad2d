"""The app, and one thing that SQLite needs to serve many threads."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created


class PlacesConfig(AppConfig):
    """Countries and cities."""

    name = "places"

    def ready(self) -> None:
        """Ask to be told of each new database connection."""
        connection_created.connect(use_write_ahead_log)


def use_write_ahead_log(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """Let SQLite read and write at the same time.

    With its ordinary journal a reader keeps every writer waiting, so that one slow StreamCities
    would stop all ImportCities. PostgreSQL has no such trouble.
    """
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")
