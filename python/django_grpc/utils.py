"""What projects that come from django-grpc import, by its names. The work is in `building`."""

import logging
from collections.abc import Iterator
from typing import Any

from django_grpc.building import (
    add_servicers,
    create_server,
    enable_reflection,
    load_interceptors,
)
from django_grpc.descriptions import describe

__all__ = [
    "add_servicers",
    "create_server",
    "enable_reflection",
    "extract_handlers",
    "load_interceptors",
    "logger",
]

logger = logging.getLogger(__name__)


def extract_handlers(server: Any) -> Iterator[str]:
    """Describe every method of a server, one line each, sorted by path.

    `django_grpc.descriptions.describe` gives the same as objects.
    """
    for description in describe(server):
        yield str(description)
