"""The settings of the test suite on the PostgreSQL whose socket is in the folder PGHOST."""

import os

from settings import *  # noqa: F403

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "atlas",
        "HOST": os.environ["PGHOST"],
    }
}
