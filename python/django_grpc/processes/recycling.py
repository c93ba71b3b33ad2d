"""When a worker process has served long enough."""

import random

from django_grpc.conf import ServerConfig
from django_grpc.processes.process import WorkerProcess
from django_grpc.processes.protocol import Plan

#: Samples, a second apart, that have to be above the limit: a peak is no leak.
_MEMORY_SAMPLES = 3


def draw_max_calls(plan: Plan) -> int | None:
    """Draw the calls after which a worker is replaced, so that not all are replaced together."""
    if plan.worker_max_calls is None:
        return None
    jitter = plan.worker_max_calls_jitter
    if jitter is None:
        jitter = plan.worker_max_calls // 10
    return plan.worker_max_calls + random.randint(0, jitter)  # noqa: S311 - nothing is secret


def unheeded_limits(config: ServerConfig) -> list[str]:
    """The keys of the settings that would have a worker process replaced, where there is none."""
    names = ("worker_max_calls", "worker_max_age", "worker_max_memory")
    return [it for it in names if getattr(config, it) is not None]


def why_to_replace(worker: WorkerProcess, plan: Plan, now: float) -> str | None:
    """Say which limit a worker has reached, by its name on the board; None: none.

    Args:
        worker: One that serves; to be looked at once a second.
        plan: The limits.
        now: The time, by `time.monotonic`.
    """
    if worker.max_calls is not None and worker.calls >= worker.max_calls:
        return "calls"
    if plan.worker_max_age is not None and now - worker.ready_at >= plan.worker_max_age:
        return "age"
    if plan.worker_max_memory is not None:
        is_high = worker.memory() >= plan.worker_max_memory
        worker.high_memory_samples = worker.high_memory_samples + 1 if is_high else 0
        if worker.high_memory_samples >= _MEMORY_SAMPLES:
            return "memory"
    return None
