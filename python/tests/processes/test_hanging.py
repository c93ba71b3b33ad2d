"""Workers that hang: while they start, while they serve, and when their parent has ended."""

import os
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from harness import wait_until
from sampleapp import helloworld_pb2

from .support import (
    HOOK,
    METHOD,
    ask,
    ask_once,
    begin,
    can_connect,
    connect,
    free_port,
    is_gone,
)

pytestmark = pytest.mark.slow

# Keeps the GIL: a foreign function of a PyDLL is called with it.
HOLDING = HOOK.replace(
    'elif verb == "grow":',
    """elif verb == "hold":
            import ctypes
            ctypes.PyDLL(None).sleep(int(argument))
        elif verb == "grow":""",
)
HANGING = "import time\nwhile True:\n    time.sleep(1)\n"
HANGING_IN_C = "import ctypes\nctypes.PyDLL(None).sleep(1000)\n"


def hold(channel: grpc.Channel) -> grpc.Future:
    """Make a call whose servicer keeps the GIL for ever."""
    call = channel.unary_unary(METHOD, response_deserializer=helloworld_pb2.HelloReply.FromString)
    request = helloworld_pb2.HelloRequest(name="hold 1000").SerializeToString()
    return call.future(request, timeout=60)


@pytest.mark.parametrize("code", [HANGING, HANGING_IN_C])
def test_second_reload_ends_new_code_that_hangs(code, serve):
    server = serve()
    address = server.wait_up()
    before = set(server.pids)
    server.write_hook(None, code)
    server.process.send(signal.SIGHUP)
    server.process.wait_for("Received SIGHUP")
    (hung,) = set(server.wait_for_pids(lambda pids: len(pids) == 3)) - before
    server.write_hook("mended")
    server.reload()
    assert is_gone(hung)
    assert {ask_once(address)[1] for _ in range(4)} == {"mended"}
    assert "can't serve" not in server.process.output
    assert server.stop() == 0


def test_mended_code_is_tried_although_the_broken_one_still_starts(serve):
    server = serve()
    address = server.wait_up()
    server.write_hook(None, "import time; time.sleep(2); raise ValueError('not like this')")
    before = len(server.pids)
    server.process.send(signal.SIGHUP)
    server.wait_for_pids(lambda pids: len(pids) > before)
    server.write_hook("mended")
    server.reload()
    assert {ask_once(address)[1] for _ in range(4)} == {"mended"}
    assert "can't serve" not in server.process.output
    assert server.stop() == 0


def test_dead_worker_is_replaced_although_new_code_hangs(serve, tmp_path):
    server = serve()
    address = server.wait_up()
    before = set(server.pids)
    # Only the first to import it hangs, as with a lock that somebody keeps.
    (tmp_path / "free").touch()
    server.write_hook(
        "second",
        "import os, time\n"
        f"try:\n    os.unlink({str(tmp_path / 'free')!r})\n"
        "except FileNotFoundError:\n    pass\n"
        "else:\n    time.sleep(1000)\n" + HOOK,
    )
    server.process.send(signal.SIGHUP)
    server.wait_for_pids(lambda pids: len(pids) == 3)
    wait_until(lambda: not (tmp_path / "free").exists(), "the one that hangs")
    killed, _ = ask_once(address)
    os.kill(killed, signal.SIGKILL)
    server.process.wait_for(f"Worker process {killed} was ended by SIGKILL; a new one takes its")
    wait_until(
        lambda: any(ask_once(address)[0] not in before for _ in range(4)), "the one in its place"
    )


def test_start_has_a_limit(serve):
    server = serve("--worker-start-timeout", "8")
    address = server.wait_up()
    server.write_hook(None, HANGING_IN_C)
    server.process.send(signal.SIGHUP)
    server.process.wait_for(r"could not serve after 8 s \('worker_start_timeout'\)")
    server.process.wait_for("The new code can't serve")
    server.wait_for_pids(lambda pids: len(pids) == 2)
    assert ask_once(address)[1] == "first"
    assert server.stop() == 0
    assert re.search(r'File ".*telling.py", line 2', server.process.output), "where it hung"


def test_first_start_that_hangs_ends_the_server(serve, tmp_path):
    (tmp_path / "hanging.py").write_text(HANGING_IN_C)
    server = serve(servicers=["hanging.grpc_hook"], worker_start_timeout=2)
    assert server.process.wait() == 1
    assert "CommandError: The server can't start: its first worker process" in server.process.output
    assert "'worker_start_timeout'" in server.process.output
    assert server.pids == []


def test_worker_that_hangs_in_service_is_dumped_and_replaced(serve):
    port = free_port()
    server = serve(worker_timeout=3, metrics=f"127.0.0.1:{port}")
    server.write_hook("first", HOLDING)
    address = server.wait_up()
    server.reload()
    with connect(address) as channel:
        hung, _ = ask(channel)
        call = hold(channel)
        server.process.wait_for(f"Worker process {hung} hangs: Python has not run in it for 3 s")
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.wait_for_pids(lambda pids: hung not in pids and len(pids) == 2)
        assert ask(channel)[0] != hung

    def figures():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return answer.read().decode()

    wait_until(
        lambda: 'grpc_server_worker_restarts_total{reason="hang"} 1' in figures(), "the count"
    )
    assert 'grpc_method="SayHello",grpc_code="UNAVAILABLE"} 1' in figures(), "the call is no riddle"
    assert server.stop() == 0
    assert "in SayHello" in server.process.output, "it wrote down where"


def test_worker_that_is_busy_is_not_taken_for_one_that_hangs(serve):
    server = serve(worker_timeout=2, max_workers=8)
    server.write_hook(
        "first",
        HOOK.replace(
            'verb == "sleep":',
            """verb == "compute":
            until = time.monotonic() + float(argument)
            while time.monotonic() < until:
                pass
        elif verb == "sleep":""",
        ),
    )
    address = server.wait_up()
    server.reload()
    before = set(server.wait_for_pids(lambda pids: len(pids) == 2))
    with connect(address) as channel:
        for call in [begin(channel, "compute 5") for _ in range(8)]:
            call.result()
    assert set(server.pids) == before
    assert server.stop() == 0


def test_hanging_worker_ends_soon_after_its_parent(serve):
    """Python drains when the parent has ended; the engine sees to it where Python can't."""
    server = serve(worker_timeout=None, metrics=f"127.0.0.1:{(port := free_port())}")
    server.write_hook("first", HOLDING)
    address = server.wait_up()
    server.reload()
    with connect(address) as channel:
        ask(channel)
        hold(channel)
        begun = time.monotonic()
        pids = server.pids
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: all(is_gone(pid) for pid in pids), "the workers' end")
        assert time.monotonic() - begun < 15
        wait_until(lambda: not can_connect(port), "a free port")  # its last threads die, too


def test_worker_that_starts_ends_with_its_parent(serve):
    server = serve()
    server.wait_up()
    before = set(server.pids)
    server.write_hook(None, HANGING_IN_C)
    server.process.send(signal.SIGHUP)
    (hung,) = set(server.wait_for_pids(lambda pids: len(pids) == 3)) - before
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(hung), "the end of the one that starts")


def test_orphans_say_why_they_end(serve):
    server = serve()
    server.wait_up()
    pids = server.pids
    os.kill(server.pid, signal.SIGKILL)
    for _ in pids:
        server.process.wait_for("The parent of this worker process has ended")


def test_worker_that_holds_the_gil_says_that_it_is_not_ready_when_the_server_stops(serve):
    port = free_port()
    server = serve(
        drain_delay=3,
        worker_timeout=None,
        metrics=f"127.0.0.1:{port}",
        health={"checks": []},
    )
    server.write_hook("first", HOLDING)
    address = server.wait_up()
    server.reload()

    def ready():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/calls") as answer:
            return answer.read().decode().count('"ready":true')

    with connect(address) as first, connect(address) as second:
        assert ask(first)[0] != ask(second)[0]
        wait_until(lambda: ready() == 2, "both")
        with ThreadPoolExecutor() as pool:
            pool.submit(hold(first).exception)
            wait_until(lambda: ready() <= 2, "an answer")
            server.process.send(signal.SIGTERM)
            server.process.wait_for("Received SIGTERM")
            wait_until(lambda: ready() == 0, "the word of both")
            server.end()


def test_the_only_worker_that_is_told_to_end_by_others_is_replaced_first(serve):
    port = free_port()
    server = serve("--workers", "2", metrics=f"127.0.0.1:{port}")
    address = server.wait_up()
    server.process.send(signal.SIGTTOU)
    (only,) = server.wait_for_pids(lambda pids: len(pids) == 1)
    os.kill(only, signal.SIGTERM)
    wait_until(lambda: len(server.pids) == 2, "the next one")
    assert ask_once(address)[0] == only, "it serves until the other one does"
    server.wait_for_pids(lambda pids: len(pids) == 1 and only not in pids)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert 'restarts_total{reason="signal"} 1' in answer.read().decode()
    assert server.stop() == 0
