"""`manage.py grpcserver --autoreload`: two processes, of which one serves and watches."""

import os
import signal
import time

import grpc
import pytest
from harness import LISTENING, begin_sleep, listening, say_hello

HOOK = """
from sampleapp import helloworld_pb2, helloworld_pb2_grpc
from sampleapp.servicer import Greeter


class Reloaded(Greeter):
    def SayHello(self, request, context):
        return helloworld_pb2.HelloReply(message="{answer}")


def grpc_hook(server):
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Reloaded(), server)
"""


class Module:
    """The source file of a servicer."""

    def __init__(self, path):
        self._path = path
        self._modified_at = time.time() - 1000

    def write(self, text):
        self._path.write_text(text)
        self._touch()

    def _touch(self):
        # The reloader compares times of modification, which two writes may share.
        self._modified_at += 10
        os.utime(self._path, (self._modified_at, self._modified_at))

    def change(self, text, process):
        """Replace it, and wait until the process has noticed."""
        self.write(text)
        # A change is noticed if the file was looked at before, and nothing tells when it was.
        process.wait_for("Autoreload is enabled", nudge=self._touch)


@pytest.fixture
def module(tmp_path):
    module = Module(tmp_path / "reloaded_servicer.py")
    module.write(HOOK.format(answer="first"))
    return module


@pytest.fixture
def start_reloading(start, module):
    def start_reloading(*arguments, **setting):
        process = start(
            "--port", "0", "--autoreload", *arguments,
            servicers=["reloaded_servicer.grpc_hook"], **setting,
        )  # fmt: skip
        process.wait_for("Autoreload is enabled")
        return process

    return start_reloading


def test_server_comes_back_with_the_changed_code(start_reloading, module):
    process = start_reloading()
    with listening(process) as channel:
        assert say_hello(channel) == "first"
    module.change(HOOK.format(answer="second"), process)
    with listening(process) as channel:
        assert say_hello(channel) == "second"
    process.send(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("def grpc_hook(server:\n", "SyntaxError"),
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("", "can't be imported"),
        ("import sys\nsys.exit(4)\n", r"calls sys\.exit\(4\)"),
        (
            "import argparse\nargparse.ArgumentParser().parse_args(['strange'])\n",
            r"calls sys\.exit\(2\)",
        ),
    ],
)
@pytest.mark.parametrize("when", ["at start", "later"])
def test_fault_in_a_servicer_is_printed_and_the_server_comes_back_when_it_is_mended(
    when, fault, complaint, start_reloading, module
):
    if when == "at start":
        module.write(fault)
        process = start_reloading()
    else:
        process = start_reloading()
        listening(process).close()
        module.change(fault, process)
    process.wait_for(complaint)
    module.change(HOOK.format(answer="mended"), process)
    with listening(process) as channel:
        assert say_hello(channel) == "mended"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_drains_when_it_is_told_to_stop(number, start_reloading):
    process = start_reloading()
    with listening(process) as channel:
        call = begin_sleep(channel, 1)
        process.send(number)
        process.wait_for(f"Received {number.name}")
        assert len(list(call)) == 2
        assert process.wait() == 0
    assert "Graceful shutdown completed" in process.output


def test_second_signal_ends_the_server_at_once(start_reloading):
    process = start_reloading()
    with listening(process) as channel:
        _sleeping = begin_sleep(channel, 100)  # kept: a call that is dropped is cancelled
        process.send(signal.SIGTERM)
        process.wait_for("Received SIGTERM")
        assert process.send_until_end(signal.SIGTERM) == 128 + signal.SIGTERM


def test_changed_file_does_not_wait_for_a_long_call(start_reloading, module):
    process = start_reloading()
    with listening(process) as channel:
        call = begin_sleep(channel, 100)
        module.change(HOOK.format(answer="second"), process)
        with pytest.raises(grpc.RpcError):
            list(call)
        with listening(process) as new_channel:
            assert say_hello(new_channel) == "second"


def test_port_that_is_taken_ends_the_server(start, start_reloading):
    first = start("--port", "0")
    port = first.wait_for(LISTENING).group(1)
    process = start_reloading("--port", port)
    assert process.wait() == 1
    assert f"The server can't listen on 127.0.0.1:{port}" in process.output
