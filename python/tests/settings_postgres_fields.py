"""The settings of the test suite on PostgreSQL, with Django's fields for it."""

from settings_postgres import *  # noqa: F403
from settings_postgres import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.postgres"]
