"""SIGHUP, and the number of workers."""

import os
import signal

import pytest
from harness import begin_sleep, wait_until
from load import SteadyLoad
from sampleapp import helloworld_pb2

from .support import METHOD, ask_once, connect, is_gone

pytestmark = pytest.mark.slow


def test_new_code_and_settings_are_taken_over(serve):
    server = serve()
    address = server.wait_up()
    before = server.pids
    server.write_hook("second")
    server.write_setting(workers=3)
    server.reload()
    wait_until(lambda: all(is_gone(pid) for pid in before), "the end of the workers of before")
    answers = {ask_once(address) for _ in range(12)}
    assert answers == {(pid, "second") for pid in server.pids}
    assert len(answers) == 3, "no more than needed"
    server.write_setting(workers=1)
    server.reload()
    server.wait_for_pids(lambda pids: len(pids) == 1)
    assert server.stop() == 0


def test_calls_of_before_end_while_new_ones_are_served(serve):
    server = serve()
    address = server.wait_up()
    with connect(address) as channel:
        calls = [begin_sleep(channel, 3)]
        before = server.pids
        server.write_hook("second")
        server.reload()
        assert ask_once(address)[1] == "second"
        assert len(list(calls[0])) == 2
    wait_until(lambda: all(is_gone(pid) for pid in before), "the end of the workers of before")


def test_code_that_can_not_serve_leaves_the_workers_of_before(serve):
    server = serve()
    address = server.wait_up()
    before = set(server.pids)
    for broken in ("raise ValueError('not like this')", "import os; os._exit(3)", "syntax error"):
        server.write_hook(None, broken)
        server.process.send(signal.SIGHUP)
        server.process.wait_for("The new code can't serve, see above")
        assert {ask_once(address) for _ in range(4)} == {(pid, "first") for pid in before}
    assert "ValueError: not like this" in server.process.output
    server.write_hook("mended")
    server.reload()
    assert ask_once(address)[1] == "mended"
    assert server.stop() == 0


def test_ten_deployments_under_load_fail_no_call(serve):
    server = serve()
    address = server.wait_up()
    request = helloworld_pb2.HelloRequest(name="x")
    seen = set(server.pids)
    with SteadyLoad(address, METHOD, request) as load:
        load.wait_for_calls(200)
        for _ in range(10):
            server.reload()
            seen.update(server.pids)
        load.wait_for_calls(200)
    assert load.failures == []
    assert load.calls > 500
    assert len(seen) >= 22, "each deployment has workers of its own"
    assert server.stop() == 0


def test_workers_that_are_told_to_end_by_others_are_replaced_without_failing_a_call(serve):
    server = serve()
    address = server.wait_up()
    with SteadyLoad(address, METHOD, helloworld_pb2.HelloRequest(name="x")) as load:
        for _ in range(4):
            ended = server.pids[0]
            os.kill(ended, signal.SIGTERM)
            server.wait_for_pids(lambda pids, ended=ended: ended not in pids and len(pids) == 2)
            load.wait_for_calls(200)
    assert load.failures == []


def test_number_of_workers_can_be_changed_by_signals(serve):
    server = serve()
    address = server.wait_up()
    server.process.send(signal.SIGTTIN)
    server.process.wait_for("There will be 3 worker processes")
    wait_until(lambda: len({ask_once(address)[0] for _ in range(6)}) == 3, "the third")
    for _ in range(4):
        server.process.send(signal.SIGTTOU)
        server.process.wait_for("Received SIGTTOU")
    server.wait_for_pids(lambda pids: len(pids) == 1)
    assert ask_once(address)[1] == "first"
