"""Which loop async methods run on."""

from __future__ import annotations

import asyncio
import sys
import types

import pytest

from .support import OURS, handler

pytestmark = pytest.mark.skipif(not OURS, reason="the engine's own")


class OtherLoop(asyncio.SelectorEventLoop):
    """Stands for uvloop's."""


@pytest.fixture
def uvloop(monkeypatch):
    module = types.ModuleType("uvloop")
    module.new_event_loop = OtherLoop
    monkeypatch.setitem(sys.modules, "uvloop", module)


async def loop_name(request, context):
    return type(asyncio.get_running_loop()).__name__.encode()


@pytest.mark.parametrize(("value", "name"), [(1, b"OtherLoop"), (0, b"_UnixSelectorEventLoop")])
def test_uvloop_is_used_when_it_is_asked_for(serve_threaded, uvloop, value, name):
    served = serve_threaded(
        {"Loop": handler("unary_unary", loop_name)}, options=[("django_grpc.uvloop", value)]
    )
    assert served.unary("Loop") == name


def test_uvloop_that_is_missing(monkeypatch):
    from django_grpc import engine

    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ValueError, match="needs the package uvloop"):
        engine.server(options=[("django_grpc.uvloop", 1)])


def test_server_without_async_methods_has_no_loop(serve_threaded):
    import threading

    before = {it.name for it in threading.enumerate()}
    served = serve_threaded({"Echo": handler("unary_unary", lambda request, context: request)})
    assert served.unary("Echo", b"x") == b"x"
    after = {it.name for it in threading.enumerate()}
    assert "grpc-asyncio" not in after - before
