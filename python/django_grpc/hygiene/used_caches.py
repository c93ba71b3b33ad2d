"""What `close_caches` does, where there is a cache that does something when it is closed."""

from django.core.cache import caches, close_caches
from django.core.cache.backends import base
from django.core.cache.backends.base import BaseCache
from django.utils.module_loading import import_string

from django_grpc.hygiene.stock import is_stock

# The CACHES setting that was looked at last, and whether a backend of it does something when it is
# closed: most inherit BaseCache.close, which does nothing. One tuple, so that threads which change
# it at once leave a consistent pair.
_knowledge: tuple[object, bool] = (None, True)


def close_used_caches() -> None:
    """Do what ``django.core.cache.close_caches`` does."""
    settings, has_work = _knowledge
    if settings is not caches.settings:  # another object once a test has overridden it
        has_work = _look()
    if has_work:
        close_caches()


def are_caches_used() -> bool:
    """Whether `close_used_caches` has something to do."""
    settings, has_work = _knowledge
    if settings is not caches.settings:
        has_work = _look()
    return has_work and any(True for _ in caches.all(initialized_only=True))


def _look() -> bool:
    global _knowledge
    settings = caches.settings
    has_work = any(_closes(parameters["BACKEND"]) for parameters in settings.values())
    _knowledge = (settings, has_work)
    return has_work


def _closes(backend: str) -> bool:
    """Tell whether caches of a backend do anything at the end of a request.

    One that can't be imported may be one that nobody uses, as `close_caches` has it.
    """
    try:
        close = import_string(backend).close
        return close is not BaseCache.close or not is_stock(close, base)
    except Exception:  # whatever importing it does
        return True
