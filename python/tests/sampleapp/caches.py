"""A cache backend that notes when it is closed."""

from typing import ClassVar

from django.core.cache.backends.locmem import LocMemCache


class ClosableCache(LocMemCache):
    closed: ClassVar[list[str]] = []

    def close(self, **kwargs):
        self.closed.append("closed")
