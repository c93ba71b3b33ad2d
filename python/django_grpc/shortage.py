"""Threads that the system refuses."""


class NoThreadError(RuntimeError):
    """There is no thread for a call, and none can be started: it ends with UNAVAILABLE."""


def is_refusal(error: RuntimeError) -> bool:
    """Whether the system has refused a thread; Python has no class of its own for it."""
    return str(error) == "can't start new thread"
