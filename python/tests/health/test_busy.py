"""The health of a server that is busy: its workers, its queue, its loop, its interpreter."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from harness import PATIENCE, eventually

from django_grpc.engine import aio

from .support import NOT_SERVING, SERVING, Probe, echo, unary


@pytest.fixture
def blocking(gate):
    """A behaviour that blocks, and waits for a number of calls that do."""
    release = gate()
    entered = threading.Semaphore(0)

    def block(request, _context):
        entered.release()
        release.pass_through()
        return request

    def wait_for(count):
        for _ in range(count):
            assert entered.acquire(timeout=PATIENCE)

    return block, wait_for, release


def begin(channel, count, method="Block"):
    call = channel.unary_unary(f"/a.B/{method}")
    return [call.future(b"", timeout=PATIENCE) for _ in range(count)]


def test_probes_are_answered_while_every_worker_is_busy_and_the_queue_is_full(serve, blocking):
    block, wait_for, release = blocking
    server, channel, probe = serve({"Block": unary(block)}, max_workers=2)
    calls = begin(channel, 50)
    wait_for(2)
    assert (probe.check(), probe.check("a.B")) == (SERVING, SERVING)
    assert probe.list() == {"": SERVING, "a.B": SERVING}
    watch = probe.watch()
    assert watch.next() == SERVING
    server.announce_shutdown()
    assert watch.next() == NOT_SERVING
    assert not any(call.done() for call in calls)
    watch.cancel()
    release.set()
    assert [call.result() for call in calls] == [b""] * 50


def test_probes_do_not_count_against_the_limit_of_calls(serve, blocking):
    block, wait_for, release = blocking
    server, channel, probe = serve(
        {"Block": unary(block)}, max_workers=4, maximum_concurrent_rpcs=2
    )
    watches = [probe.watch() for _ in range(5)]
    assert {watch.next() for watch in watches} == {SERVING}
    assert server.statistics()["calls_active"] == 0
    calls = begin(channel, 2)
    wait_for(2)
    [refused] = begin(channel, 1)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert probe.check() == SERVING
    release.set()
    assert [call.result() for call in calls] == [b""] * 2
    for watch in watches:
        watch.cancel()


def test_stuck_queue_makes_the_server_not_ready_until_it_moves(serve, blocking, caplog):
    caplog.set_level("INFO", "django_grpc.health")
    block, wait_for, release = blocking
    server, channel, probe = serve(
        {"Block": unary(block), "Echo": unary(echo)},
        max_workers=1,
        health={"max_queue_wait": 0.3},
    )
    watch = probe.watch("a.B")
    calls = begin(channel, 1)
    wait_for(1)
    assert watch.next() == SERVING
    # The only worker is busy, and nobody waits for it.
    assert probe.check() == SERVING
    calls += begin(channel, 1, "Echo")
    assert watch.next() == NOT_SERVING
    assert probe.check() == NOT_SERVING
    assert server.health.problem == (
        "queue",
        "a call has waited for longer than 0.3 s in the queue",
    )
    release.set()
    assert watch.next() == SERVING
    assert [call.result() for call in calls] == [b""] * 2
    assert server.health.is_ready
    watch.cancel()
    # Told of by a thread of its own, which must not find a server that has been stopped meanwhile.
    assert eventually(lambda: len(caplog.records) == 2)
    server.stop(0).wait(PATIENCE)
    assert [record.getMessage() for record in caplog.records] == [
        "The server is not ready: a call has waited for longer than 0.3 s in the queue",
        "The server is ready again",
    ]


class LoopServer:
    """A `grpc.aio` server on a loop in a thread."""

    def __init__(self, methods, **health):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server, self.port = self.run(self._start(methods, health))

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    async def _start(self, methods, health):
        server = aio.server(maximum_concurrent_rpcs=10)
        server.add_registered_method_handlers("a.B", methods)
        server.enable_health(**health)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    def close(self):
        self.run(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


@pytest.fixture
def loop_server(gate):
    """Start servers on loops; their gates open before they stop."""
    with contextlib.ExitStack() as at_end:

        def start(methods, **health):
            running = LoopServer(methods, **health)
            at_end.callback(running.close)
            channel = grpc.insecure_channel(f"127.0.0.1:{running.port}")
            return running.server, at_end.enter_context(channel)

        yield start


async def echo_async(request, _context):
    return request


def test_server_on_a_loop_has_health(loop_server):
    server, channel = loop_server({"Echo": unary(echo_async)})
    probe = Probe(channel)
    assert probe.list() == {"": SERVING, "a.B": SERVING}
    watch = probe.watch("a.B")
    assert watch.next() == SERVING
    server.health.set_status("a.B", NOT_SERVING)
    assert watch.next() == NOT_SERVING
    server.announce_shutdown()
    assert probe.check() == NOT_SERVING
    watch.cancel()


def test_loop_that_is_blocked_makes_the_server_not_ready(loop_server, blocking):
    block, wait_for, release = blocking

    async def block_the_loop(request, context):
        return block(request, context)

    _, channel = loop_server(
        {"Block": unary(block_the_loop), "Echo": unary(echo_async)}, max_queue_wait=0.3
    )
    probe = Probe(channel)
    watch = probe.watch()
    calls = begin(channel, 1)
    wait_for(1)
    assert watch.next() == SERVING
    calls += begin(channel, 1, "Echo")
    assert watch.next() == NOT_SERVING
    assert not any(call.done() for call in calls)
    release.set()
    assert watch.next() == SERVING
    assert [call.result() for call in calls] == [b""] * 2
    watch.cancel()


class HeldServer:
    """The process of `held_server`."""

    def __init__(self, *arguments):
        here = Path(__file__).parent
        self.process = subprocess.Popen(
            [sys.executable, str(here / "held_server.py"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ,
        )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{int(self.process.stdout.readline())}")

    def hold(self):
        """Have a call hold the GIL; return it."""
        call = self.channel.unary_unary("/a.B/Hold").future(b"", timeout=PATIENCE)
        assert self.process.stdout.readline() == b"holding\n"
        return call

    def release(self):
        self.process.stdin.write(b".")
        self.process.stdin.flush()

    def close(self):
        self.channel.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def held():
    """Start servers whose interpreter can be held."""
    with contextlib.ExitStack() as at_end:

        def start(*, max_queue_wait=60, interval=60, timeout=60):
            server = HeldServer(max_queue_wait, interval, timeout)
            at_end.callback(server.close)
            return server

        yield start


def test_probes_are_answered_while_the_interpreter_is_held(held):
    server = held()
    probe = Probe(server.channel)
    probe.wait_for(SERVING)
    call = server.hold()
    watch = probe.watch("a.B")
    assert watch.next() == SERVING
    assert [probe.check() for _ in range(100)] == [SERVING] * 100
    assert probe.list() == {"": SERVING, "a.B": SERVING}
    assert not call.done()
    server.release()
    assert call.result() == b""
    watch.cancel()


def test_stuck_queue_is_seen_while_the_interpreter_is_held(held):
    server = held(max_queue_wait=0.3)
    probe = Probe(server.channel)
    probe.wait_for(SERVING)
    watch = probe.watch()
    assert watch.next() == SERVING
    calls = [server.hold(), *begin(server.channel, 1, "Echo")]
    assert watch.next() == NOT_SERVING
    assert probe.check("a.B") == NOT_SERVING
    assert not any(call.done() for call in calls)
    server.release()
    assert watch.next() == SERVING
    assert [call.result() for call in calls] == [b""] * 2
    watch.cancel()


def test_lease_runs_out_while_the_interpreter_is_held(held):
    server = held(interval=0.2, timeout=2)
    probe = Probe(server.channel)
    probe.wait_for(SERVING)
    watch = probe.watch()
    assert watch.next() == SERVING
    call = server.hold()
    assert watch.next() == NOT_SERVING
    assert not call.done()
    server.release()
    assert watch.next() == SERVING
    assert call.result() == b""
    watch.cancel()
