"""Settings of the atlas: an ordinary Django project without a web site."""

import os
from pathlib import Path

from atlas.database import database_from_url

BASE_DIR = Path(__file__).resolve().parent.parent

# Signs the page tokens of ListCities. Set it when clients are to keep their tokens across servers.
SECRET_KEY = os.environ.get("ATLAS_SECRET_KEY", "good enough for a demonstration")

INSTALLED_APPS = ["django_grpc", "places"]

DATABASES = {
    "default": database_from_url(
        os.environ.get("ATLAS_DATABASE_URL", "sqlite:///atlas.sqlite3"), BASE_DIR
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# All that it takes to serve gRPC: where the servicers are. Everything else has a default.
GRPCSERVER = {
    "servicers": ["places.servicers.grpc_hook"],
    # Lets grpcurl and other tools ask the server for its services, without the .proto file.
    "reflection": True,
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {"format": "{levelname} {name}: {message}", "style": "{"},
        "line": {"format": "{message}", "style": "{"},
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "plain"},
        "access": {"class": "logging.StreamHandler", "formatter": "line"},
    },
    "loggers": {
        "places": {"handlers": ["console"], "level": "INFO"},
        # What a servicer raises comes out here, with its traceback.
        "django_grpc": {"handlers": ["console"], "level": "INFO"},
        # As it is, for it may be JSON.
        "django_grpc.access": {"handlers": ["access"], "propagate": False},
    },
}
