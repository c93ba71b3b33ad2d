"""From the start of a server with workers to its end."""

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from harness import LISTENING, PATIENCE, begin_sleep, start_on_terminal, wait_until

from django_grpc.lifecycle.stop_signals import TOGETHER

from .support import ask, ask_once, can_connect, connect, free_port, is_gone


def test_workers_serve_and_the_parent_does_not(serve):
    server = serve()
    address = server.wait_up()
    assert len(server.pids) == 2, "it says that it listens when all of them serve"
    answered = {ask_once(address)[0] for _ in range(8)}
    assert answered == set(server.pids)
    assert "cygrpc" not in Path(f"/proc/{server.pid}/maps").read_text()
    assert "cygrpc" in Path(f"/proc/{server.pids[0]}/maps").read_text()
    assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1, "it starts no thread"
    assert "2 processes of" in server.process.output + server.process.wait_for("Address").string


def test_no_process_says_what_one_has_said(serve):
    server = serve()
    server.wait_up()
    assert server.stop() == 0
    output = server.process.output
    for text in ("unapplied migration", "Graceful shutdown completed"):
        assert output.count(text) == 1, output


def test_who_comes_before_the_workers_are_ready_waits_for_them(serve, tmp_path):
    port = free_port()
    (tmp_path / "slow.py").write_text(
        "import time; time.sleep(2); print('loaded', flush=True)\nfrom telling import grpc_hook\n"
    )
    server = serve("--port", str(port), servicers=["slow.grpc_hook"])
    wait_until(lambda: can_connect(port), "the port")
    with connect(f"127.0.0.1:{port}") as channel:
        assert ask(channel)[0] in server.pids
    server.wait_up()
    output = server.process.output
    assert output.index("loaded") < output.index("is listening port"), "it did not wait in vain"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_calls_in_flight_end_before_the_server_does(number, serve):
    server = serve()
    address = server.wait_up()
    with connect(address) as first, connect(address) as second:
        pids = {ask(first)[0], ask(second)[0]}
        calls = [begin_sleep(first, 1), begin_sleep(second, 1)]
        server.process.send(number)
        for call in calls:
            assert len(list(call)) == 2
        assert server.process.wait() == 0
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)
    assert f"Received {number.name}." in server.process.output
    assert server.process.output.endswith("Graceful shutdown completed\n")
    assert "Traceback" not in server.process.output


def test_call_that_outlives_the_grace_is_cut(serve):
    server = serve(grace=0.2)
    with connect(server.wait_up()) as channel:
        ask(channel)
        call = begin_sleep(channel, 100)
        server.process.send(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            list(call)
    assert server.process.wait() == 0


def test_second_signal_ends_all_processes_at_once(serve):
    server = serve()
    with connect(server.wait_up()) as channel:
        pids = server.pids
        ask(channel)
        call = begin_sleep(channel, 100)
        server.process.send(signal.SIGTERM)
        server.process.wait_for("Received SIGTERM")
        time.sleep(TOGETHER)
        assert not call.done()
        server.process.send(signal.SIGTERM)
        assert server.process.wait() == 128 + signal.SIGTERM
        wait_until(lambda: all(is_gone(pid) for pid in pids), "the workers' end")
    assert "Graceful shutdown completed" not in server.process.output


def test_new_connections_are_refused_while_the_server_drains(serve):
    server = serve()
    address = server.wait_up()
    with connect(address) as channel:
        ask(channel)
        call = begin_sleep(channel, 1)
        server.process.send(signal.SIGTERM)
        server.process.wait_for("Received SIGTERM")

        port = int(address.split(":")[1])
        wait_until(lambda: not can_connect(port), "the refusal")
        assert not call.done()
        assert len(list(call)) == 2
    assert server.process.wait() == 0


def test_calls_are_served_during_the_drain_delay(serve):
    server = serve(drain_delay=1)
    address = server.wait_up()
    server.process.send(signal.SIGTERM)
    server.process.wait_for("Received SIGTERM")
    begun = time.monotonic()
    assert ask_once(address)[1] == "first", "also on a new connection"
    assert server.process.wait() == 0
    assert time.monotonic() - begun > 0.5, "it was given its time"


def test_project_hears_of_the_shutdown_in_every_worker(serve, tmp_path):
    (tmp_path / "hearing.py").write_text(
        "import os\n"
        "from django.dispatch import receiver\n"
        "from django_grpc.signals import grpc_shutdown\n"
        "from telling import grpc_hook\n"
        "@receiver(grpc_shutdown)\n"
        "def on_shutdown(**kwargs):\n"
        "    print(f'shut down in {os.getpid()}', flush=True)\n"
    )
    server = serve(servicers=["hearing.grpc_hook"])
    server.wait_up()
    pids = server.pids
    assert server.stop() == 0
    for pid in pids:
        # Without the end of the line: processes that print at once share lines.
        assert f"shut down in {pid}" in server.process.output


def test_workers_of_a_parent_that_was_killed_drain_and_end(serve):
    server = serve()
    with connect(server.wait_up()) as channel:
        pids = server.pids
        ask(channel)
        call = begin_sleep(channel, 1)
        os.kill(server.pid, signal.SIGKILL)
        assert len(list(call)) == 2
        wait_until(lambda: all(is_gone(pid) for pid in pids), "the workers' end")


def test_interrupt_from_the_terminal_is_heard_once(serve, tmp_path):
    """^C goes to all processes of the terminal's foreground group."""
    server = serve()  # for its files only
    server.end()
    parent, terminal = os.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(tmp_path), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        ),
        "DJANGO_SETTINGS_MODULE": "process_settings",
    }
    process = start_on_terminal(
        terminal, "-m", "django", "grpcserver", "--port", "0", env=environment
    )
    os.close(terminal)
    try:
        output = _read_until(parent, b"Quit with CONTROL-C.")
        port = int(output.split(b"listening port ")[1].split()[0])
        with connect(f"127.0.0.1:{port}") as channel:
            ask(channel)
            call = begin_sleep(channel, 1)
            os.write(parent, b"\x03")
            assert len(list(call)) == 2
        output = _read_until(parent, b"Graceful shutdown completed")
        assert b"KeyboardInterrupt" not in output
        assert b"Ended at once" not in output
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(parent)


def _read_until(descriptor: int, text: bytes) -> bytes:
    output = b""
    give_up_at = time.monotonic() + PATIENCE
    while text not in output and time.monotonic() < give_up_at:
        output += os.read(descriptor, 4096)
    assert text in output
    return output


def test_one_worker_is_one_process(serve):
    server = serve(workers=1)
    server.process.wait_for(LISTENING)
    assert server.pids == []
    assert "threads. Quit" in server.process.wait_for("Address").string


def test_one_process_says_which_limits_do_not_count(serve):
    server = serve("--worker-max-calls", "10", workers=1, worker_max_age=60)
    for name in ("worker_max_calls", "worker_max_age"):
        server.process.wait_for(f"is not replaced: '{name}' counts with more 'workers'.")
    server.process.wait_for(LISTENING)
    assert "worker_max_memory" not in server.process.output


def test_with_autoreload_there_are_no_workers(serve):
    server = serve("--autoreload")
    server.process.wait_for("With --autoreload there is one process: 'workers' does not count.")
    server.process.wait_for(LISTENING)
