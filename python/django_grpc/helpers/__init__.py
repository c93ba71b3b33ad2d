"""Helpers for servicers."""

from .ratelimit import ratelimit

__all__ = ["ratelimit"]
