"""What health checks see of a server with workers, and methods of asyncio there."""

import contextlib
import signal

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import PATIENCE, wait_until

from .support import ask, ask_once, connect

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# It passes a second after its process has begun to serve.
CHECK = """
import os, time
begun = time.monotonic()


def check():
    if time.monotonic() - begun < 1:
        raise ValueError("it is too early")
    print("passes in", os.getpid(), flush=True)
"""


def status(address: str) -> int:
    """Ask on a connection of its own."""
    with connect(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        return stub.Check(request, timeout=PATIENCE, wait_for_ready=True).status


def test_new_workers_are_taken_in_when_their_checks_pass(serve, tmp_path):
    (tmp_path / "early.py").write_text(CHECK)
    server = serve(health={"checks": ["early.check"], "interval": 0.1})
    address = server.wait_up()
    pids = set()
    while len(pids) < 2:
        pids.add(server.process.wait_for(r"passes in (\d+)").group(1))
    assert status(address) == SERVING
    before = set(server.pids)
    server.process.send(signal.SIGHUP)
    seen = set()

    def is_reloaded():
        seen.add(status(address))
        pids = set(server.pids)
        return len(pids) == 2 and not before & pids

    wait_until(is_reloaded, "the reload")
    assert seen == {SERVING}, "nobody is given to one that is not ready"


def test_new_code_whose_checks_fail_is_taken_in_when_nobody_is_better(serve, tmp_path):
    (tmp_path / "never.py").write_text("def check():\n    raise ValueError('never')\n")
    server = serve(health={"checks": ["never.check"], "interval": 0.1})
    address = server.wait_up()
    assert status(address) == NOT_SERVING
    server.reload()
    assert ask_once(address)[1] == "first"


def test_workers_are_not_serving_from_the_signal_on_and_serve_all_the_same(serve):
    server = serve(health={"checks": []}, drain_delay=2)
    address = server.wait_up()
    with contextlib.ExitStack() as at_end:
        channels = [at_end.enter_context(connect(address)) for _ in range(2)]
        watches = []
        for channel in channels:
            assert ask(channel)[1] == "first"
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
            assert next(watch).status == SERVING
            watches.append(watch)
        server.process.send(signal.SIGTERM)
        for channel, watch in zip(channels, watches, strict=True):
            assert next(watch).status == NOT_SERVING
            assert ask(channel)[1] == "first"
            watch.cancel()
    assert server.process.wait() == 0


@pytest.mark.parametrize("is_async", [True, False])
def test_async_methods_are_served_and_drained(is_async, serve, tmp_path):
    server = serve(servicers=["sampleapp.async_servicer.grpc_hook"], **{"async": is_async})
    address = server.wait_up()
    with connect(address) as channel:
        from harness import begin_sleep, say_hello

        assert say_hello(channel) == "Hello, World!"
        server.reload()
        assert say_hello(channel) == "Hello, World!"
        call = begin_sleep(channel, 0.5)
        server.process.send(signal.SIGTERM)
        assert len(list(call)) == 2
    assert server.process.wait() == 0
    assert "Traceback" not in server.process.output
