"""`manage.py grpcserver --autoreload`: two processes, of which one serves and watches."""

import os
import signal
import time

import grpc
import pytest
from harness import LISTENING, begin_sleep, listening, say_hello

pytestmark = pytest.mark.slow

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
        self.path = path
        self._modified_at = time.time() - 1000

    def write(self, text):
        self.path.write_text(text)
        self.touch()

    def touch(self):
        # The reloader compares times of modification, which two writes may share.
        self._modified_at += 10
        os.utime(self.path, (self._modified_at, self._modified_at))

    def change(self, text, process):
        """Replace it, and wait until the process has noticed."""
        self.write(text)
        # A change is noticed if the file was looked at before, and nothing tells when it was.
        process.wait_for("Autoreload is enabled", nudge=self.touch)


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


ONE_LOOK = """
import logging
from django.utils import autoreload

autoreload.StatReloader.SLEEP_TIME = 3600
autoreload.logger = logging.getLogger("reloader")  # which LOGGING leaves alone
autoreload.logger.addHandler(logging.StreamHandler())
autoreload.logger.setLevel(logging.DEBUG)
"""


def test_the_reloaders_first_look_is_at_the_servicers_too(start_reloading, module, tmp_path):
    """Else what is changed before the second one is never noticed."""
    (tmp_path / "sitecustomize.py").write_text(ONE_LOOK)
    process = start_reloading()
    process.wait_for(r"reloaded_servicer\.py first seen")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("def grpc_hook(server:\n", "SyntaxError"),
        ("x = 1\0\n", "null bytes"),
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


def test_interrupt_of_the_process_group_is_one(start_reloading):
    """Without a terminal the child has it twice: from the group, and passed on by its parent."""
    process = start_reloading()
    with listening(process) as channel:
        call = begin_sleep(channel, 1)
        process.send_to_group(signal.SIGINT)
        assert len(list(call)) == 2
        assert process.wait() == 0
    assert "Graceful shutdown completed" in process.output
    assert "Traceback" not in process.output


def test_second_signal_ends_the_server_at_once(start_reloading):
    process = start_reloading()
    with listening(process) as channel:
        _sleeping = begin_sleep(channel, 100)  # kept: a call that is dropped is cancelled
        process.send(signal.SIGTERM)
        process.wait_for("Received SIGTERM")
        # By that signal itself where one more comes while the process goes.
        ends = (128 + signal.SIGTERM, -signal.SIGTERM)
        assert process.send_until_end(signal.SIGTERM) in ends


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


@pytest.fixture
def start_with_app(start, module, tmp_path):
    """Start a server with an app of the project, of one file."""
    (tmp_path / "brittle").mkdir()
    (tmp_path / "brittle/__init__.py").touch()
    models = Module(tmp_path / "brittle/models.py")
    models.write("from django.db import models\n")
    (tmp_path / "settings_with_app.py").write_text(
        "from process_settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'brittle']\n"
    )
    process = start(
        "--port", "0", "--autoreload",
        servicers=["reloaded_servicer.grpc_hook"],
        environment={"DJANGO_SETTINGS_MODULE": "settings_with_app"},
    )  # fmt: skip
    listening(process).close()
    return process, models


WAITING = "ended with status 1. It is started again when a file changes"


def test_app_that_can_not_be_loaded_is_waited_for(start_with_app):
    process, models = start_with_app
    models.write("def broken(:\n")
    process.wait_for(WAITING, nudge=models.touch)
    assert "SyntaxError" in process.output
    models.change("from django.db import models\n", process)
    with listening(process) as channel:
        assert say_hello(channel) == "first"


def test_file_that_an_app_got_since_is_waited_for(start_with_app, tmp_path):
    process, models = start_with_app
    added = Module(tmp_path / "brittle/added.py")
    added.write("def broken(:\n")
    models.write("from brittle import added\n")
    process.wait_for(WAITING, nudge=models.touch)
    added.change("", process)
    with listening(process) as channel:
        assert say_hello(channel) == "first"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_ends_while_it_waits_for_an_app(number, start_with_app):
    process, models = start_with_app
    models.write("def broken(:\n")
    process.wait_for(WAITING, nudge=models.touch)
    process.send(number)
    assert process.wait() == 0
    assert process.output.splitlines()[-1].endswith("when a file changes.")


def test_servicer_that_ends_the_process_is_waited_for(start, module):
    module.write("import os\nos._exit(5)\n")
    (module.path.parent / "settings_beside.py").write_text("from process_settings import *\n")
    process = start(
        "--port", "0", "--autoreload",
        servicers=["reloaded_servicer.grpc_hook"],
        environment={"DJANGO_SETTINGS_MODULE": "settings_beside"},
    )  # fmt: skip
    process.wait_for("ended with status 5. It is started again when a file changes")
    module.change(HOOK.format(answer="mended"), process)
    with listening(process) as channel:
        assert say_hello(channel) == "mended"


def test_url_configuration_that_ends_the_process_is_waited_for(start, module):
    module.write("import sys\nsys.exit(4)\n")
    (module.path.parent / "settings_with_urls.py").write_text(
        "from process_settings import *\nROOT_URLCONF = 'reloaded_servicer'\n"
    )
    process = start(
        "--port", "0", "--autoreload",
        environment={"DJANGO_SETTINGS_MODULE": "settings_with_urls"},
    )  # fmt: skip
    process.wait_for("ended with status 4. It is started again when a file changes")
    process.send(signal.SIGTERM)
    assert process.wait() == 0


UNHEARD = """
import os, signal
from django.utils import autoreload
from sampleapp.servicer import grpc_hook

look = autoreload.StatReloader.snapshot_files

class Finalized:
    def __del__(self):  # what it raises goes nowhere
        signal.raise_signal(signal.{name})

def look_and_finalize(self):
    if os.path.exists("{told}"):
        os.unlink("{told}")
        Finalized()
    return look(self)

autoreload.StatReloader.snapshot_files = look_and_finalize
"""


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_server_whomever_it_interrupts(name, is_async, start, tmp_path):
    told = tmp_path / "told"
    (tmp_path / "unheard.py").write_text(UNHEARD.format(name=name, told=told))
    process = start(
        "--port", "0", "--autoreload",
        servicers=["unheard.grpc_hook"],
        **{"async": is_async},
    )  # fmt: skip
    listening(process).close()
    told.touch()
    assert process.wait() == 0
    assert "<function Finalized.__del__" in process.output
    assert f"Received {name}. Starting graceful shutdown" in process.output
    assert "Graceful shutdown completed\n" in process.output
