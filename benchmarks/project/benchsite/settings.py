"""Settings under which both servers run the benchmark project.

Nothing here asks which server it is: the environment that `manage.py` runs in decides. The
values are those of a production service (no DEBUG, persistent connections, WAL), so that
what is measured is what a deployed project would get.
"""

import os
from typing import Any

DEBUG = False
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django_grpc", "cities"]

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("BENCH_DATABASE", "bench.sqlite3"),
        # A connection per call would measure SQLite's open() instead of the server: keep
        # each worker thread's connection for the life of the process, under both servers.
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "init_command": (
                "PRAGMA journal_mode = WAL;"
                "PRAGMA synchronous = NORMAL;"
                "PRAGMA cache_size = -20000;"
                "PRAGMA mmap_size = 134217728;"
                "PRAGMA temp_store = MEMORY;"
            ),
        },
    }
}

# querysets.py, and nothing else, names another one.
GRPCSERVER = {"servicers": [os.environ.get("BENCH_SERVICER", "cities.servicers.grpc_hook")]}
