"""Readiness checks: functions without arguments that raise when the server is not ready.

They run in the background, one after the other, on a thread of their own, with that thread's own
database connections. Add your own to the setting:

    GRPCSERVER = {
        "health": {
            "checks": [
                "django_grpc.health.checks.databases",
                "django_grpc.health.checks.migrations",
                "shop.health.search_index",
            ],
        },
    }
"""

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor

from django_grpc.health import NotReady

#: What Django takes for a project that names no database.
_NO_DATABASE = "django.db.backends.dummy"


def databases() -> None:
    """Every configured database answers a query.

    Raises:
        NotReady: One does not.
    """
    for alias in connections:
        connection = connections[alias]
        if connection.settings_dict["ENGINE"] == _NO_DATABASE:
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT 1{connection.features.bare_select_suffix}")
                cursor.fetchone()
        except DatabaseError as error:
            raise NotReady(f"the database '{alias}' does not answer: {error}") from error


class _Migrations:
    """See `migrations`."""

    def __init__(self) -> None:
        self._were_applied = False

    def __call__(self) -> None:
        if self._were_applied:
            return
        try:
            executor = MigrationExecutor(connections[DEFAULT_DB_ALIAS])
        except ImproperlyConfigured:  # no database
            return
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if plan:
            names = [f"{migration.app_label}.{migration.name}" for migration, _ in plan]
            more = ", ..." if len(names) > 3 else ""
            raise NotReady(f"migrations are not applied: {', '.join(names[:3])}{more}")
        self._were_applied = True


#: No migration of the default database is left to apply. Once that is so, it looks no more: the
#: migrations that this process knows do not change.
migrations = _Migrations()
