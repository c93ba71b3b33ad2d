"""Backpressure in both directions, and fairness."""

from __future__ import annotations

import asyncio
import gc
import threading

import grpc.aio
import pytest

from .support import PATIENCE, Gate, handler, ours_only

CHUNK = b"x" * 16_384


@pytest.mark.parametrize("style", ["generator", "write"])
def test_slow_reader_stops_the_servicer(serve, style):
    """What waits for a reader who does not read is bounded."""
    sent = [0]
    waiting = Gate()

    async def generate(request, context):
        for _ in range(2_000):
            sent[0] += 1
            yield CHUNK

    async def write(request, context):
        for _ in range(2_000):
            sent[0] += 1
            await context.write(CHUNK)

    served = serve({"Flood": handler("unary_stream", generate if style == "generator" else write)})
    call = served.call("unary_stream", "Flood")
    next(call)
    # Until it stands still; how far it got depends on the windows, not on time.
    before = -1
    while before != sent[0]:
        before = sent[0]
        waiting.wait(0.2)
    assert sent[0] < 1_000
    assert sum(1 for _ in call) == 1_999
    assert sent[0] == 2_000


@ours_only("grpc.aio reads ahead of its servicer")
def test_slow_servicer_stops_the_sender(serve):
    sent = [0]
    read_on = Gate()

    async def collect(requests, context):
        count = 0
        async for _ in requests:
            if count == 0:
                await read_on.passed()
            count += 1
        return b"%d" % count

    def requests():
        for _ in range(1_000):
            sent[0] += 1
            yield CHUNK

    served = serve({"Collect": handler("stream_unary", collect)})
    call = served.method("stream_unary", "Collect").future(requests(), timeout=20)
    before, pause = -1, threading.Event()
    while before != sent[0] or before == 0:
        before = sent[0]
        pause.wait(0.2)
    assert sent[0] < 900
    read_on.set()
    assert call.result() == b"1000"


def test_endless_generator_leaves_the_loop_to_others(serve):
    """A generator that never awaits, with a peer who keeps up, does not keep other calls out."""
    stop = Gate()

    async def endless(request, context):
        while not stop.is_set():
            yield b"x"

    async def echo(request, context):
        return request

    served = serve(
        {"Endless": handler("unary_stream", endless), "Echo": handler("unary_unary", echo)}
    )
    call = served.call("unary_stream", "Endless")
    reader = threading.Thread(target=lambda: list(call))
    reader.start()
    try:
        for _ in range(5):
            assert served.unary("Echo", b"x") == b"x"
    finally:
        stop.set()
        reader.join(10)


@ours_only("5,000 calls at a time take grpc.aio too long")
def test_thousands_of_sleeping_calls(serve):
    """Calls that wait cost no thread."""
    entered, leave = [], Gate()

    async def sleep(request, context):
        entered.append(None)
        while not leave.is_set():
            await asyncio.sleep(0.05)
        return b"slept"

    served = serve({"Sleep": handler("unary_unary", sleep)})
    threads = threading.active_count()
    calls = [served.call("unary_unary", "Sleep", timeout=60) for _ in range(2_000)]
    pause = threading.Event()
    for _ in range(5_000):
        if len(entered) == 2_000:
            break
        pause.wait(0.01)
    assert len(entered) == 2_000
    assert threading.active_count() - threads < 10
    leave.set()
    assert {call.result() for call in calls} == {b"slept"}


def test_read_and_iteration_end_at_eof(serve):
    seen = []

    async def both(requests, context):
        async for request in requests:
            seen.append(request)
        seen.append(await context.read() is grpc.aio.EOF)
        return b""

    served = serve({"Both": handler("stream_unary", both)})
    served.messages("stream_unary", "Both", b"a", b"b")
    assert seen == [b"a", b"b", True]


@ours_only("grpc.aio keeps what every poll has left")
def test_who_polls_a_silent_peer_leaves_nothing_behind(serve):
    """A read that was given up is forgotten at once, not when the peer says something."""
    polled = threading.Event()
    kept = []

    def count():
        gc.collect()
        # By its type alone: among all objects are some that do a lot when asked for their class.
        kept.append(sum(issubclass(type(it), asyncio.Future) for it in gc.get_objects()))

    async def poll(requests, context):
        count()
        for _ in range(500):
            reading = asyncio.ensure_future(context.read())
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
        count()
        polled.set()
        return await context.read()

    def requests():
        polled.wait(PATIENCE)
        yield b"late"

    served = serve({"Poll": handler("stream_unary", poll)})
    assert served.method("stream_unary", "Poll")(requests(), timeout=PATIENCE) == b"late"
    before, after = kept
    assert after - before < 100
