"""Workers that end when they should not."""

import os
import re
import signal
import time

import grpc
import pytest
from harness import wait_until

from .support import HOOK, ask, ask_once, begin, connect, is_gone

# Ends itself a moment after it has become ready, if a file says so.
SHORT_LIVED = (
    HOOK
    + """
import threading
from pathlib import Path


def end():
    time.sleep(0.3)
    if Path(__file__).with_name("die").exists():
        os._exit(7)


threading.Thread(target=end, daemon=True).start()
"""
)


def test_worker_that_is_killed_takes_only_its_own_calls_along(serve):
    server = serve()
    address = server.wait_up()
    with connect(address) as first, connect(address) as second:
        doomed, other = ask(first)[0], ask(second)[0]
        assert doomed != other
        lost, kept = begin(first, "sleep 1"), begin(second, "sleep 1")
        assert ask(second)[0] == other
        os.kill(doomed, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as caught:
            lost.result()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert kept.result().message.endswith("first")
        pids = server.wait_for_pids(lambda pids: doomed not in pids and len(pids) == 2)
        server.process.wait_for(
            f"Worker process {doomed} was ended by SIGKILL; a new one takes its place"
        )
        assert ask(first)[0] in pids, "its client has connected again"
        wait_until(lambda: len({ask_once(address)[0] for _ in range(4)}) == 2, "the new worker")
    assert server.stop() == 0


def test_server_is_whole_again_soon_after_the_new_worker_is_ready(serve):
    server = serve(metrics="127.0.0.1:0")
    address = server.wait_up()
    with connect(address) as channel, pytest.raises(grpc.RpcError):
        begin(channel, "die 3").result()
    # While the system takes that process apart, a connection may still be given to it; this client
    # may have made such a one.
    server.process.wait_for("ended with status 3; a new one takes its place")
    with connect(address) as channel:
        assert ask(channel)[1] == "first"
    server.wait_for_pids(lambda pids: len(pids) == 2)
    assert server.stop() == 0


def test_workers_that_end_again_and_again_end_the_server_when_no_other_serves(serve, tmp_path):
    server = serve()
    server.wait_up()
    before = set(server.pids)
    server.write_hook("first", SHORT_LIVED)
    (tmp_path / "die").touch()
    server.process.send(signal.SIGHUP)
    server.process.wait_for("ended with status 7")  # in service, or before it where that is slow
    server.process.wait_for("The new code can't serve")
    left = before & set(server.pids)
    assert left, "those of before go on"
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    said = "ended with status 7"
    while said != "The server ends":
        said = server.process.wait_for("ended with status 7|The server ends").group()
    assert server.process.wait() == 1
    output = server.process.output
    assert re.search(r"CommandError: The server ends: 5 times in a row a worker process", output)
    assert "Traceback" not in output
    assert server.pids == []


def test_first_worker_that_can_not_serve_ends_the_server(serve):
    server = serve(servicers=["nowhere.grpc_hook"])
    assert server.process.wait() == 1
    output = server.process.output
    assert output.count("GRPCSERVER['servicers']: 'nowhere.grpc_hook' can't be imported") == 1
    assert "CommandError: The server can't start: its first worker process ended with" in output
    assert "Traceback" not in output


def test_exit_status_of_the_first_worker_is_the_servers(serve, tmp_path):
    (tmp_path / "exiting.py").write_text("import os\nos._exit(42)\n")
    server = serve(servicers=["exiting.grpc_hook"])
    assert server.process.wait() == 42


def test_worker_that_hangs_is_killed_after_the_grace(serve):
    server = serve(grace=0.1, workers=2)
    address = server.wait_up()
    pid, _ = ask_once(address)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    server.process.send(signal.SIGTERM)
    assert server.process.wait() == 0
    assert time.monotonic() - begun >= 5
    assert f"Worker process {pid} did not end in time and is killed." in server.process.output
    assert is_gone(pid)


def test_all_that_a_dead_worker_leaves_may_be_noticed_together(serve):
    server = serve()
    address = server.wait_up()
    with connect(address) as channel:
        pid, _ = ask(channel)
        os.kill(server.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGTERM)
        channel.close()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), "the worker's end")
        os.kill(server.pid, signal.SIGCONT)
    server.wait_for_pids(lambda pids: pid not in pids and len(pids) == 2)
    assert ask_once(address)[1] == "first"
    assert server.stop() == 0
