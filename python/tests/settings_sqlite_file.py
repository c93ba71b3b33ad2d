"""The settings of the test suite with a test database in the file SQLITE_FILE."""

import os

from settings import *  # noqa: F403

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["SQLITE_FILE"],
        "TEST": {"NAME": os.environ["SQLITE_FILE"]},
    }
}
