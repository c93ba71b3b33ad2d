"""One URL says where the atlas keeps its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


def database_from_url(url: str, base: Path) -> dict[str, Any]:
    """Turn a URL into an entry of Django's ``DATABASES``.

    Args:
        url: ``sqlite:///file.sqlite3`` (relative to ``base``; four slashes for an absolute path) or
            ``postgresql://user:password@host:port/name``. As in libpq, ``?host=/folder`` names the
            folder of a Unix socket; other parameters go to psycopg as they are.
        base: The folder that a relative SQLite path starts from.

    Raises:
        ImproperlyConfigured: The URL names no database, or a kind of database not known here.
    """
    parts = urlsplit(url)
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise ImproperlyConfigured(
            "ATLAS_DATABASE_URL names no database; end it with one, as in postgresql://host/atlas."
        )
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": base / name,
            # A writer waits this many seconds for another one before "database is locked".
            "OPTIONS": {"timeout": 20},
        }
    if parts.scheme in ("postgresql", "postgres"):
        try:
            port = parts.port
        except ValueError as error:
            raise ImproperlyConfigured(f"ATLAS_DATABASE_URL has a bad port: {error}.") from error
        options: dict[str, Any] = dict(parse_qsl(parts.query))
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": options.pop("host", None) or unquote(parts.hostname or ""),
            "PORT": port or "",
            "OPTIONS": options,
            # Each worker thread of the server keeps its own connection from call to call. Without
            # this (Django's default is 0) every call would connect to PostgreSQL anew.
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
        }
    raise ImproperlyConfigured(
        f"ATLAS_DATABASE_URL starts with {parts.scheme!r}; use sqlite:// or postgresql://."
    )
