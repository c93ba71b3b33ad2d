"""Whatever an async method raises, its call gets its status, and is over."""

from __future__ import annotations

import asyncio
import sys
import threading

import grpc
import pytest
from log_handlers import odd_handler

from .support import LOGGER_NAME, OURS, PATIENCE, Gate, handler

if OURS:
    from django_grpc.engine import coroutines

pytestmark = pytest.mark.skipif(not OURS, reason="the engine's own")

UNPRINTABLE = "Unexpected unprintable exception"


class UnspeakableError(Exception):
    def __str__(self):
        raise ValueError("no text")


class LeavingError(Exception):
    def __str__(self):
        sys.exit()


class SilentError(Exception):
    def __str__(self):
        return None


class UntrueError(Exception):
    def __bool__(self):
        raise ValueError("neither")


class PrivateError(Exception):
    def __getattribute__(self, name):
        raise ValueError(name)


class _Meta(type):
    def __repr__(cls):
        raise ValueError("no name")

    @property
    def __name__(cls):
        raise ValueError("no name")


class NamelessError(Exception, metaclass=_Meta):
    pass


FAILURES = {
    UnspeakableError: UNPRINTABLE,
    LeavingError: UNPRINTABLE,
    SilentError: UNPRINTABLE,
    NamelessError: UNPRINTABLE,
    UntrueError: f"Unexpected {UntrueError}: ",
    PrivateError: f"Unexpected {PrivateError}: ",
    GeneratorExit: f"Unexpected {GeneratorExit}: ",
}


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
@pytest.mark.parametrize(("error", "details"), FAILURES.items(), ids=range(len(FAILURES)))
def test_odd_exception(serve, kind, error, details, caplog):
    async def fail(request, context):
        raise error

    async def fail_late(request, context):
        yield b"first"
        raise error

    served = serve({"Fail": handler(kind, fail if kind == "unary_unary" else fail_late)})
    failure = served.failure(kind, "Fail")
    assert failure.code() is grpc.StatusCode.UNKNOWN
    assert failure.details() == details
    served.stop()
    assert served.server.statistics()["calls_active"] == 0
    assert [it.levelname for it in caplog.records if it.name == LOGGER_NAME] == ["ERROR"]


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
def test_stream_that_returns_in_place_of_yielding(serve, kind):
    async def messages():
        yield b"lost"

    async def returning(request, context):
        return messages()

    async def writing(request, context):
        await context.write(b"sent")

    served = serve({"Returns": handler(kind, returning), "Writes": handler(kind, writing)})
    failure = served.failure(kind, "Returns")
    assert failure.code() is grpc.StatusCode.UNKNOWN
    assert "a streaming method has to yield, or to send by context.write()" in failure.details()
    assert served.messages(kind, "Writes") == [b"sent"]


def test_text_that_is_no_unicode():
    error = ValueError("a \ud800")
    assert coroutines._details(error) == rf"Unexpected {ValueError}: a \ud800"


@pytest.mark.parametrize("failure", [ConnectionError(), SystemExit()])
def test_log_handler_that_raises(serve, failure):
    async def fail(request, context):
        raise ValueError("mine")

    async def good(request, context):
        context.add_done_callback(lambda _: 1 / 0)
        context.add_done_callback(lambda _: called.set())
        return b"good"

    called = threading.Event()
    served = serve({"Fail": handler("unary_unary", fail), "Good": handler("unary_unary", good)})
    with odd_handler(LOGGER_NAME) as lines:
        lines.failure = failure
        for _ in range(3):
            failed = served.failure("unary_unary", "Fail")
            assert failed.code() is grpc.StatusCode.UNKNOWN
            assert failed.details() == f"Unexpected {ValueError}: mine"
        assert served.unary("Good") == b"good"
        assert called.wait(PATIENCE)
        assert lines.records


@pytest.mark.parametrize("leave", [sys.exit, KeyboardInterrupt, GeneratorExit])
def test_done_callback_that_exits_ends_no_other_call(serve, leave):
    async def waits(request, context):
        entered.set()
        await asyncio.to_thread(gate.pass_through)
        return b"waited"

    async def exits(request, context):
        def exit_process(context):
            raise leave()

        context.add_done_callback(exit_process)
        context.add_done_callback(lambda _: called.set())
        return b"done"

    entered, called, gate = threading.Event(), threading.Event(), Gate()
    served = serve({"Waits": handler("unary_unary", waits), "Exits": handler("unary_unary", exits)})
    waiting = served.call("unary_unary", "Waits")
    assert entered.wait(PATIENCE)
    assert served.unary("Exits") == b"done"
    assert called.wait(PATIENCE)
    gate.set()
    assert waiting.result() == b"waited"
