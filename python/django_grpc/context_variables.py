"""Context variables, on their way from one thread or task of a call to another one."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, ItemsView
from typing import Any

#: What was set, by variable.
Variables = dict[contextvars.ContextVar[Any], Any]

_MISSING = object()

# What asgiref calls its variables, all attributes of a `Local` together.
_LOCAL = "asgiref.local"


def adopt(variables: contextvars.Context | Variables) -> None:
    """Set here what another side has set, as `sync_to_async` does."""
    items: ItemsView[contextvars.ContextVar[Any], Any] = variables.items()
    for variable, value in items:
        if variable.get(_MISSING) is not value:
            variable.set(value)


def changes(before: contextvars.Context) -> Variables | None:
    """Return what was set of the context variables since a context was copied.

    What the thread or the loop had before stays its own, and all that asgiref's `Local` keeps: of
    two threads, each has clients of caches there that the other one must not use.
    """
    now = contextvars.copy_context()
    changed = {
        it: value
        for it, value in now.items()
        if before.get(it, _MISSING) is not value and it.name != _LOCAL
    }
    return changed or None


def carry(variables: Variables, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does what another one does, with context variables as given."""
    return functools.partial(_run_with, variables, function)


def _run_with(variables: Variables, function: Callable[..., Any], *arguments: Any) -> Any:
    def run() -> Any:
        adopt(variables)
        return function(*arguments)

    return contextvars.copy_context().run(run)
