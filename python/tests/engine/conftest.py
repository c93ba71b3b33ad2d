"""Fixtures of the engine's behaviour suite."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import pytest

from .support import Gate, ServerFactory

_HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound every test of this folder: a server that hangs must not hang the suite."""
    for item in items:
        if _HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture
def serve() -> Iterator[ServerFactory]:
    """Make servers that stop, and clients that close, at the end of the test."""
    with contextlib.ExitStack() as closing:
        yield ServerFactory(closing)


@pytest.fixture
def gate(serve: ServerFactory) -> Iterator[Callable[[], Gate]]:
    """Make gates that open by themselves at the end of the test, before its servers stop."""
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate())
        return gates[-1]

    yield make
    for each in gates:
        each.set()
