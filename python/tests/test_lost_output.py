"""Servers whose output nobody reads, or can be written nowhere: it stops nothing."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import grpc
import pytest
from harness import PATIENCE, say_hello, wait_until

from django_grpc.lifecycle import output

KINDS = ["dead pipe", "unread pipe", "closed", "full disk"]


class Silent:
    """A `grpcserver` whose standard output and error are lost, in a way of `KINDS`."""

    def __init__(self, kind: str, folder: Path, *arguments: str, **setting) -> None:
        (folder / "process_settings.py").write_text(
            f"from settings import *\n\nGRPCSERVER = {setting!r}\n"
        )
        # What the project prints at import raises on a lost output, too.
        (folder / "printing.py").write_text(
            "from sampleapp.servicer import grpc_hook\n"
            # To print to a pipe that is full is to wait for its reader.
            + ("" if kind in ("full disk", "unread pipe") else "print('imported', flush=True)\n")
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        descriptors = []
        self.reading: int | None = None
        if kind == "dead pipe":
            reading, writing = os.pipe()
            os.close(reading)
            descriptors = [writing]
        elif kind == "unread pipe":
            self.reading, writing = os.pipe()
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, b"unread\n")
            os.set_blocking(writing, True)
            descriptors = [writing]
        elif kind == "full disk":
            descriptors = [os.open("/dev/full", os.O_WRONLY)]
        command = [sys.executable, "-m", "django", "grpcserver", f"127.0.0.1:{self.port}"]
        command += arguments
        if kind == "closed":
            command = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *command]
        output = descriptors[0] if descriptors else None
        path = os.pathsep.join(
            str(it) for it in (folder, Path(__file__).parent, os.environ.get("PYTHONPATH", ""))
        )
        self.process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONUNBUFFERED": "1",
                "DJANGO_SETTINGS_MODULE": "process_settings",
            },
        )
        for it in descriptors:
            os.close(it)

    def children(self) -> set[str]:
        pid = self.process.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.reading is not None:
            os.close(self.reading)


@pytest.fixture
def silent(tmp_path):
    servers = []

    def silent(kind, *arguments, **setting):
        servers.append(Silent(kind, tmp_path, *arguments, **setting))
        return servers[-1]

    yield silent
    for server in servers:
        server.end()


@pytest.mark.parametrize("kind", KINDS)
def test_alone_it_starts_serves_and_drains(kind, silent):
    server = silent(kind, servicers=["printing.grpc_hook"])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert say_hello(channel) == "Hello, World!"
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_workers_start_reload_and_drain(kind, silent):
    server = silent(kind, "--workers", "2", servicers=["printing.grpc_hook"])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert say_hello(channel) == "Hello, World!"
        wait_until(lambda: len(server.children()) == 2, "both")
        before = server.children()
        server.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: len(server.children()) == 2 and not before & server.children(), "new workers"
        )
        assert say_hello(channel) == "Hello, World!"
        server.process.send_signal(signal.SIGTTIN)
        wait_until(lambda: len(server.children()) == 3, "one more")
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_second_signal_ends_it_at_once(kind, silent):
    server = silent(kind, "--workers", "2", servicers=["printing.grpc_hook"])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_stream("/helloworld.Greeter/SayHelloStreamReply")
        replies = call(b"\n\x0bsleeper 100", timeout=60, wait_for_ready=True)
        next(replies)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.parametrize("kind", KINDS)
def test_autoreload_goes_on(kind, silent, tmp_path):
    server = silent(kind, "--autoreload", servicers=["printing.grpc_hook"])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert say_hello(channel) == "Hello, World!"
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_mistake_has_its_status(kind, silent):
    server = silent(kind, servicers=["nowhere.grpc_hook"])
    assert server.process.wait(PATIENCE) == 1


def fill(descriptor: int) -> None:
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(4096))


def test_pipe_that_nobody_reads_is_waited_for_once(monkeypatch):
    """Standard output and error are one pipe, mostly, and at the end several lines go there."""
    waits = []

    class Poll:
        def __init__(self):
            self.poll_object = select.poll()
            self.register = self.poll_object.register

        def poll(self, milliseconds):
            waits.append(milliseconds > 0)
            return self.poll_object.poll(0)

    monkeypatch.setattr(output, "select", types.SimpleNamespace(poll=Poll, POLLOUT=select.POLLOUT))
    reading, writing = os.pipe()
    other = os.dup(writing)
    try:
        fill(writing)
        assert [output._has_room(it) for it in (writing, other, writing)] == [False] * 3
        assert waits == [True, False, False]
        os.read(reading, 1 << 20)
        assert output._has_room(other)
        fill(writing)
        assert not output._has_room(other)
        assert waits[3:] == [False, True]
        os.read(reading, 1 << 20)
        assert output._has_room(other)
    finally:
        for descriptor in (reading, writing, other):
            os.close(descriptor)
