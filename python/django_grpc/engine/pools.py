"""What a thread pool says of the workers that a server should have."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

logger = logging.getLogger("django_grpc")

# An executor has no public size: those of the standard library keep it in the first.
_SIZES = ("_max_workers", "max_workers")
# Where executors around others keep them; the first is that of grpcio's logging_pool.
_INNER = ("_backing_pool", "_executor", "_pool")


def pool_size(pool: Executor | None) -> int:
    """Return the size of a pool; of none, the size that `ThreadPoolExecutor()` would have.

    A pool that does not tell its size counts as none, with a warning.
    """
    default: int = ThreadPoolExecutor()._max_workers
    if pool is None:
        return default
    inner = [getattr(pool, name, None) for name in _INNER]
    for candidate in (pool, *inner):
        if (size := _size(candidate)) is not None:
            return size
    logger.warning(
        "The thread pool %r does not tell its size, as a ThreadPoolExecutor does: the server has "
        "%d workers.",
        pool,
        default,
    )
    return default


def _size(pool: Any) -> int | None:
    for name in _SIZES:
        size = getattr(pool, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None
