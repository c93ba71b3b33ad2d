"""Fixtures of the suite of async servicers."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from .support import FLAVOURS, LoopThread, ServerFactory

_HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound every test of this folder: a server that hangs must not hang the suite."""
    for item in items:
        if _HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    """A loop on which nothing may be left when the test ends."""
    thread = LoopThread()
    yield thread
    pending = thread.close()
    assert pending == []
    assert thread.complaints == []


@pytest.fixture(params=FLAVOURS)
def serve(request: pytest.FixtureRequest, loop: LoopThread) -> Iterator[ServerFactory]:
    """Make servers, of either flavour, that stop at the end of the test."""
    with contextlib.ExitStack() as closing:
        yield ServerFactory(closing, request.param, loop)


@pytest.fixture
def serve_aio(loop: LoopThread) -> Iterator[ServerFactory]:
    """Make servers of `aio.server` that stop at the end of the test."""
    with contextlib.ExitStack() as closing:
        yield ServerFactory(closing, "aio", loop)


@pytest.fixture
def serve_threaded(loop: LoopThread) -> Iterator[ServerFactory]:
    """Make servers of `engine.server` that stop at the end of the test."""
    with contextlib.ExitStack() as closing:
        yield ServerFactory(closing, "threaded", loop)
