"""What a thread pool says of the workers that a server should have."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor


def pool_size(pool: Executor | None) -> int:
    """Return the size of a pool; of none, the size that `ThreadPoolExecutor()` would have.

    Raises:
        ValueError: The pool does not tell its size.
    """
    # An executor has no public size; every one of the standard library keeps it here.
    size = getattr(pool or ThreadPoolExecutor(), "_max_workers", None)
    if not isinstance(size, int):
        raise ValueError(
            f"thread_pool must be a ThreadPoolExecutor, so that its size is known; got {pool!r}."
        )
    return size
