"""Django settings of the test suite."""

SECRET_KEY = "only-for-tests"  # noqa: S105
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django_grpc",
    "sampleapp",
    "catalog",
    "library",
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
    }
}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

ROOT_URLCONF = "sampleapp.urls"

GRPCSERVER = {"servicers": ["sampleapp.servicer.grpc_hook"]}
