"""The watchdog: calls that run for long are logged, once, with their stacks."""

import asyncio
import ctypes
import gc
import logging
import queue
import subprocess
import sys
import threading
import time

import grpc
import pytest
from engine.raw import RawConnection
from harness import PATIENCE, begin_sleep, listening

from django_grpc import building, conf
from django_grpc.engine.watchdog import OverdueCall, current_frames, describe
from django_grpc.wrapping.wrapper import SignalWrapper

from .support import METHOD, SERVICE, begin, call, handler_of

PATH = f"/{METHOD}"
LIMIT = 0.2

pytestmark = pytest.mark.usefixtures("databases_allowed")


@pytest.fixture
def warnings():
    """What the watchdog logs, as it comes."""
    logger = logging.getLogger("django_grpc.watchdog")
    records = queue.SimpleQueue()
    handler = logging.Handler()
    handler.emit = records.put
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def may_end():
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def serve(engine_server):
    """Serve one method, watched; returns a channel and a function that stops the server."""
    stops = []

    def serve(kind, method, limit=LIMIT):
        server = engine_server()
        server.watch_calls(limit)
        SignalWrapper(server).add_registered_method_handlers(
            SERVICE, {"Method": handler_of(kind, method)}
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        channel.port = port

        def stop():
            assert server.stop(0).wait(PATIENCE)

        stops.extend((stop, channel.close))
        return channel, stop

    yield serve
    for stop in stops:
        stop()


def next_text(warnings):
    record = warnings.get(timeout=PATIENCE)
    assert record.levelno == logging.WARNING
    assert (record.method, record.peer[:5]) == (PATH, "ipv4:")
    assert record.running_time >= LIMIT
    return record.getMessage()


def servicer_frames(text):
    return [line.rpartition(" in ")[2] for line in text.splitlines() if line.startswith("  File")]


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_thread(serve, warnings, may_end, kind):
    def get_stuck():
        may_end.wait(PATIENCE)
        return b""

    if kind.endswith("unary"):

        def method(request, context):
            return get_stuck()
    else:

        def method(request, context):
            yield get_stuck()

    channel, stop = serve(kind, method)
    running = begin(channel, kind)
    text = next_text(warnings)
    first, *_ = text.splitlines()
    assert first.startswith(f"{PATH} runs for 0.")
    assert " s on thread grpc-worker-" in first
    assert ", deadline in " in first
    # Neither the engine's frames nor those of the signals.
    assert servicer_frames(text)[:3] == ["method", "get_stuck", "wait"]
    # Once, though it goes on; the next look would have found it again.
    time.sleep(2 * LIMIT)
    assert warnings.empty()
    may_end.set()
    assert list(running.result() if kind.endswith("unary") else running) in ([], [b""])
    stop()
    assert warnings.empty()


@pytest.mark.parametrize("style", ["coroutine", "generator", "write"])
def test_task(serve, warnings, style):
    futures = []

    async def get_stuck():
        futures.append(asyncio.get_running_loop().create_future())
        await futures[-1]
        return b""

    async def further():
        yield await get_stuck()

    if style == "coroutine":

        async def method(request, context):
            return await get_stuck()
    elif style == "generator":

        async def method(request, context):
            async for it in further():
                yield it
    else:

        async def method(request, context):
            await context.write(await get_stuck())

    kind = "unary_unary" if style == "coroutine" else "unary_stream"
    channel, _ = serve(kind, method)
    running = begin(channel, kind)
    text = next_text(warnings)
    assert " s on the asyncio loop (peer ipv4:" in text
    frames = ["method", "further", "get_stuck"] if style == "generator" else ["method", "get_stuck"]
    assert servicer_frames(text) == frames
    running.cancel()


def test_task_that_blocks_its_loop(serve, warnings, may_end):
    def block():
        may_end.wait(PATIENCE)

    async def method(request, context):
        block()
        return b""

    channel, _ = serve("unary_unary", method)
    running = begin(channel, "unary_unary")
    text = next_text(warnings)
    assert "on the asyncio loop" in text
    assert "block" in servicer_frames(text)
    may_end.set()
    running.result()


@pytest.mark.parametrize("is_async", [False, True])
def test_interpreter_that_was_held(serve, warnings, is_async):
    """Nobody can look meanwhile; the call is told of afterwards, though it has ended."""
    hold = ctypes.PyDLL(None).usleep  # keeps the GIL

    if is_async:

        async def method(request, context):
            hold(int(3 * LIMIT * 1e6))
            return b""
    else:

        def method(request, context):
            hold(int(3 * LIMIT * 1e6))
            return b""

    channel, stop = serve("unary_unary", method)
    call(channel, "unary_unary")
    text = next_text(warnings)
    assert text.startswith((f"{PATH} runs for 0.", f"{PATH} ran for 0."))
    stop()
    assert warnings.empty()


def test_call_that_has_ended_unseen():
    call = OverdueCall("/a.B/C", "unix:", 31.24, -1.0, 4, None, None)
    assert describe(call, {}) == (
        "/a.B/C ran for 31.2 s and has ended with DEADLINE_EXCEEDED (peer unix:, deadline 1.0 s "
        "ago). The interpreter was held meanwhile, so there is no stack of it."
    )


def test_thread_that_nobody_knows():
    call = OverdueCall("/a.B/C", "unix:", 1.0, None, None, 2**40, None)
    assert describe(call, current_frames()) == (
        f"/a.B/C runs for 1.0 s on thread {2**40} (peer unix:, no deadline):\n  (no Python frame)"
    )


def test_call_whose_client_was_answered(serve, warnings, may_end):
    """The case that matters most: nobody waits for it any more, and it goes on."""

    def method(request, context):
        may_end.wait(PATIENCE)
        return b""

    channel, _ = serve("unary_unary", method)
    raw = RawConnection(("127.0.0.1", channel.port))
    assert raw.call(PATH, b"", [("grpc-timeout", "50m")]).grpc_status == 4
    raw.close()
    assert "s ago, already answered DEADLINE_EXCEEDED)" in next_text(warnings)


def printed_by(script):
    """What a script prints, which complains about nothing and ends in time."""
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.stderr == ""
    return run.stdout


_LOOKS_AMID_FINALIZERS = """
import gc, sys, threading, time
from django_grpc.engine.watchdog import current_frames

class GivesUpTheLock:
    def __del__(self):
        time.sleep(0.0002)

def litter():
    cycle = GivesUpTheLock()
    cycle.itself = cycle

def doze():
    time.sleep(0.001)  # in a frame that is new each time

def live():
    while not ending.is_set():
        doze()

def come_and_go():
    while not ending.is_set():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

ending = threading.Event()
gc.set_threshold(3)
threads = [threading.Thread(target=it) for it in (come_and_go, come_and_go, *[live] * 20)]
for thread in threads:
    thread.start()
for _ in range(1000):
    litter()
    litter()
    assert threading.get_ident() in current_frames()
ending.set()
for thread in threads:
    thread.join()
assert gc.isenabled()
gc.disable()
current_frames()
print(gc.isenabled())
"""


def test_looking_does_not_stop_the_process():
    """CPython's own function waits for ever when garbage is collected amid it (gh-106883)."""
    assert printed_by(_LOOKS_AMID_FINALIZERS) == "False\n"


def test_quick_calls_are_no_news(serve, warnings):
    channel, stop = serve("unary_unary", lambda request, context: b"", limit=PATIENCE)
    for _ in range(20):
        call(channel, "unary_unary")
    stop()
    assert warnings.empty()


def test_thread_goes_when_the_server_stops(serve):
    _, stop = serve("unary_unary", lambda request, context: b"")
    assert any(it.name == "grpc-watchdog" for it in threading.enumerate())
    stop()
    assert not any(it.name == "grpc-watchdog" for it in threading.enumerate())


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_server_that_was_dropped_takes_its_threads_along(engine_server):
    """Looking at all frames must not keep what they hold."""
    server = engine_server()
    server.watch_calls(LIMIT)
    server.log_calls(lambda calls, dropped: None)
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    ours = [it for it in threading.enumerate() if it.name in ("grpc-watchdog", "grpc-call-log")]
    assert len(ours) == 2
    del server
    for it in ours:
        it.join(PATIENCE)
        assert not it.is_alive()


_DROPPED_WHILE_THEY_LOOK = """
import gc, socket, sys, time
from django_grpc import engine

def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True

gc.collect()
gc.freeze()
gc.disable()
ports = []
for number in range(8):
    server = engine.server(None)
    ports.append(server.add_insecure_port("127.0.0.1:0"))
    server.watch_calls(0.2)
    server.start()
    server.itself = server
    del server
    # This thread allocates nothing from here on: whoever does collects the server.
    gc.set_threshold(1, 1000, 1000)
    time.sleep(0.05 + number * 0.004)
    gc.enable()
    time.sleep(0.2)
    gc.disable()
gc.collect()
give_up_at = time.monotonic() + 20
while any(map(listens, ports)) and time.monotonic() < give_up_at:
    time.sleep(0.1)
print(sum(map(listens, ports)))
"""


def test_server_is_collected_on_the_thread_that_looks():
    """It is told to end by its server's finalizer, amid its own wait."""
    assert printed_by(_DROPPED_WHILE_THEY_LOOK) == "0\n"


def test_setting(warnings, may_end):
    config, problems = conf.parse(
        {"servicers": ["sampleapp.servicer.grpc_hook"], "watchdog": LIMIT}
    )
    assert problems == []
    server = building.build_server(config)

    def method(request, context):
        may_end.wait(PATIENCE)
        return b""

    server.add_registered_method_handlers(SERVICE, {"Method": handler_of("unary_unary", method)})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        running = begin(channel, "unary_unary")
        assert "method" in servicer_frames(next_text(warnings))
        may_end.set()
        running.result()
    server.stop(0).wait(PATIENCE)


@pytest.mark.parametrize("is_async", [False, True])
def test_command(start, is_async):
    hook = f"sampleapp.{'async_' * is_async}servicer.grpc_hook"
    process = start("--port", "0", "--watchdog", "0.2", servicers=[hook], **{"async": is_async})
    with listening(process) as channel:
        running = begin_sleep(channel, 100)
        process.wait_for("/helloworld.Greeter/SayHelloStreamReply runs for 0")
        process.wait_for("in SayHelloStreamReply")
        running.cancel()
