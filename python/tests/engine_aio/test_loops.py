"""Which loop async methods run on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import grpc
import pytest
from harness import eventually
from log_handlers import odd_handler

from .support import OURS, PATIENCE, Gate, handler

if OURS:
    from django_grpc.engine import loops

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


@pytest.mark.parametrize("value", [0, 1])
def test_uvloop_is_used_when_it_is_asked_for(serve_threaded, uvloop, value):
    served = serve_threaded(
        {"Loop": handler("unary_unary", loop_name)}, options=[("django_grpc.uvloop", value)]
    )
    assert (served.unary("Loop") == b"OtherLoop") == bool(value)


# With a policy the servers' own loops are of uvloop, and so is that of grpc.aio's server.
_ON_UVLOOP = """
import asyncio, sys, pytest, uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_all_of_this_holds_on_uvloop():
    here = Path(__file__).parent
    tests = [str(here), str(here.parent / "test_signals_async.py")]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ON_UVLOOP, "-q", "-m", "not slow", *tests],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-10_000:]


def test_uvloop_that_is_missing(monkeypatch):
    from django_grpc import engine

    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ValueError, match="needs the package uvloop"):
        engine.server(options=[("django_grpc.uvloop", 1)])


def test_server_without_async_methods_has_no_loop(serve_threaded):
    before = {it.name for it in threading.enumerate()}
    served = serve_threaded({"Echo": handler("unary_unary", lambda request, context: request)})
    assert served.unary("Echo", b"x") == b"x"
    after = {it.name for it in threading.enumerate()}
    assert "grpc-asyncio" not in after - before


# Loops that end


async def good(request, context):
    return b"good"


async def exit_process(request, context):
    sys.exit("a servicer's")


async def interrupt(request, context):
    raise KeyboardInterrupt


async def stop_loop(request, context):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(3600)


async def exit_in_a_task(request, context):
    async def leave():
        sys.exit("a task's")

    await asyncio.create_task(leave())


async def exit_in_a_callback(request, context):
    asyncio.get_running_loop().call_soon(sys.exit, "a callback's")
    await asyncio.sleep(3600)


ENDING = {
    "Exit": exit_process,
    "Interrupt": interrupt,
    "Stop": stop_loop,
    "Task": exit_in_a_task,
    "Callback": exit_in_a_callback,
}


@pytest.mark.parametrize("name", ["Exit", "Interrupt"])
def test_method_that_exits_ends_its_call_alone(serve, name):
    async def waits(request, context):
        entered.set()
        await asyncio.to_thread(gate.pass_through)
        return b"waited"

    entered, gate = threading.Event(), Gate()
    methods = {"Good": good, "Waits": waits, **ENDING}
    served = serve({key: handler("unary_unary", it) for key, it in methods.items()})
    waiting = served.call("unary_unary", "Waits")
    assert entered.wait(PATIENCE)
    error = served.failure("unary_unary", name)
    assert error.code() is grpc.StatusCode.UNKNOWN
    gate.set()
    assert waiting.result() == b"waited"
    assert served.unary("Good") == b"good"


@pytest.mark.parametrize("name", ["Stop", "Task", "Callback"])
def test_loop_that_ends_is_followed_by_another(serve_threaded, name, caplog):
    entered, cleaned = threading.Event(), threading.Event()

    async def waits(request, context):
        entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.set()

    async def stream(request, context):
        yield b"first"
        await asyncio.sleep(3600)

    methods = {"Good": good, "Waits": waits, **ENDING}
    served = serve_threaded(
        {key: handler("unary_unary", it) for key, it in methods.items()}
        | {"Stream": handler("unary_stream", stream)}
    )
    for _ in range(3):
        entered.clear()
        cleaned.clear()
        waiting = served.call("unary_unary", "Waits")
        streaming = served.call("unary_stream", "Stream")
        assert next(streaming) == b"first"
        assert entered.wait(PATIENCE)
        error = served.failure("unary_unary", name)
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN}
        assert waiting.exception().code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError, match="asyncio loop of the server has ended"):
            next(streaming)
        assert cleaned.wait(PATIENCE)
        assert served.unary("Good") == b"good"
    served.stop()
    assert served.server.statistics()["calls_on_loop"] == 0


def test_lost_loops_leave_no_descriptors(serve_threaded):
    served = serve_threaded(
        {key: handler("unary_unary", it) for key, it in {"Good": good, **ENDING}.items()}
    )

    def of_loops():
        return [it for it in threading.enumerate() if it.name == "grpc-asyncio"]

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    def lose_a_loop():
        served.failure("unary_unary", "Stop")
        assert served.unary("Good") == b"good"
        for thread in of_loops()[:-1]:  # the oldest first
            thread.join(PATIENCE)
        assert len(of_loops()) == 1

    lose_a_loop()
    first = descriptors()
    for _ in range(5):
        lose_a_loop()
        assert eventually(lambda: descriptors() <= first)


@pytest.mark.parametrize("failing", ["thread", "factory", "descriptors"])
def test_loop_that_cannot_begin_costs_the_calls_of_that_moment(
    serve_threaded, monkeypatch, failing, caplog
):
    # That of the process may have said something a moment ago.
    monkeypatch.setattr(loops, "log_seldom", type(loops.log_seldom)())
    served = serve_threaded(
        {"Good": handler("unary_unary", good), "Plain": handler("unary_unary", lambda r, c: r)}
    )

    def refuse(*arguments, **keywords):
        raise error

    with monkeypatch.context() as patch:
        if failing == "thread":
            error = RuntimeError("can't start new thread")
            patch.setattr(loops, "LoopThread", refuse)
        elif failing == "factory":
            error = OSError(24, "Too many open files")
            patch.setattr(asyncio.events, "new_event_loop", refuse)
        else:
            error = OSError(24, "Too many open files")
            patch.setattr(os, "eventfd", refuse)
        for _ in range(20):
            failure = served.failure("unary_unary", "Good")
            assert failure.code() is grpc.StatusCode.UNAVAILABLE
            assert failure.details() == "The asyncio loop of the server cannot begin"
        assert served.unary("Plain", b"x") == b"x"
    assert served.unary("Good") == b"good"
    # One line a second: twenty calls take less than some.
    assert 1 <= len([it for it in caplog.records if it.name == "django_grpc"]) < 10


def test_stop_after_a_loop_has_ended(serve_threaded):
    served = serve_threaded(
        {key: handler("unary_unary", it) for key, it in {"Good": good, **ENDING}.items()}
    )
    served.failure("unary_unary", "Stop")
    served.stop()


def test_descriptor_of_the_loop_is_closed_in_children(serve_threaded):
    served = serve_threaded({"Good": handler("unary_unary", good)})
    assert served.unary("Good") == b"good"
    links = {
        int(name): os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}")
    }
    eventfds = [it for it, target in links.items() if "eventfd" in target]
    assert eventfds
    assert not any(os.get_inheritable(it) for it in eventfds)


def test_log_handler_that_waits_keeps_no_loop_and_no_worker(serve_threaded, monkeypatch):
    """What is said on the control thread is written by another one."""
    monkeypatch.setattr(loops, "log_seldom", type(loops.log_seldom)())
    served = serve_threaded(
        {"Good": handler("unary_unary", good), "Plain": handler("unary_unary", lambda r, c: r)}
    )

    def refuse(*arguments):
        raise RuntimeError("can't start new thread")

    with odd_handler("django_grpc") as lines:
        lines.gate.clear()
        with monkeypatch.context() as patch:
            patch.setattr(loops, "LoopThread", refuse)
            failure = served.failure("unary_unary", "Good")
            assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert lines.entered.wait(PATIENCE)
        assert served.unary("Plain", b"x") == b"x"
        assert served.unary("Good") == b"good"
        assert lines.texts == ["Cannot start the asyncio thread: can't start new thread"]
        assert lines.records[0].by == "grpc-log"
        assert lines.records[0].threadName == "grpc-control"


def test_calls_end_with_their_loop_before_that_is_logged(serve_threaded, monkeypatch):
    monkeypatch.setattr(loops, "log_seldom", type(loops.log_seldom)())
    served = serve_threaded(
        {key: handler("unary_unary", it) for key, it in {"Good": good, **ENDING}.items()}
    )
    with odd_handler("django_grpc") as lines:
        lines.gate.clear()
        assert served.failure("unary_unary", "Callback").code() is grpc.StatusCode.UNAVAILABLE
        assert lines.entered.wait(PATIENCE)
        assert served.unary("Good") == b"good"
