"""Workers that are replaced by a plan."""

import time
import urllib.request

import pytest
from harness import wait_until
from load import SteadyLoad
from sampleapp import helloworld_pb2

from .support import METHOD, ask_once, free_port

pytestmark = pytest.mark.slow


def restarts(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if "restart" in line and not line.startswith("#")]
    return {line.split('reason="')[1].split('"')[0]: int(line.rpartition(" ")[2]) for line in found}


def test_by_calls(serve):
    port = free_port()
    server = serve(worker_max_calls=300, worker_max_calls_jitter=1, metrics=f"127.0.0.1:{port}")
    address = server.wait_up()
    before = set(server.pids)
    with SteadyLoad(address, METHOD, helloworld_pb2.HelloRequest(name="x")) as load:
        # Those in their place may be due already, where a start takes long.
        server.wait_for_pids(lambda pids: len(pids) >= 2 and not before & set(pids))
        load.wait_for_calls(100)
    assert load.failures == []
    assert restarts(port)["calls"] >= 2
    assert server.stop() == 0, server.process.output


def test_by_age_one_at_a_time(serve):
    server = serve(worker_max_age=1)
    address = server.wait_up()
    first = set(server.pids)
    most = 0

    def all_replaced():
        nonlocal most
        assert ask_once(address)[1] == "first"
        most = max(most, len(server.pids))
        return not first & set(server.pids)

    wait_until(all_replaced, "new workers")
    assert most <= 3, "a replacement is ready before the next one goes"
    assert server.stop() == 0, server.process.output


def test_by_memory(serve):
    server = serve(worker_max_memory=250)
    address = server.wait_up()
    before = set(server.pids)
    grown, _ = ask_once(address, "grow 200")
    server.wait_for_pids(lambda pids: grown not in pids and len(pids) == 2)
    (other,) = before - {grown}
    assert other in server.pids, "the one that did not grow goes on"
    assert server.stop() == 0, server.process.output


def test_worker_within_its_limits_stays(serve):
    server = serve(worker_max_calls=1000, worker_max_age=1000, worker_max_memory=10_000)
    address = server.wait_up()
    before = server.pids
    seen_at = time.monotonic()
    wait_until(lambda: time.monotonic() - seen_at > 2.5 or ask_once(address) is None, "two looks")
    assert server.pids == before
