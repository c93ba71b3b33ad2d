"""What the parent's settings did to the parent, and workers start without."""

import time

import pytest

from .support import HOOK, ask_once

SETTINGS = """
import os
from pathlib import Path
from process_settings import *

for line in Path(__file__).with_name("variables").read_text().splitlines():
    os.environ.setdefault(*line.split("="))
{more}
"""


@pytest.fixture
def serve_with(serve, tmp_path):
    """Serve two workers with settings that take variables from a file, and do more."""

    def start(more=""):
        (tmp_path / "own_settings.py").write_text(SETTINGS.format(more=more))
        (tmp_path / "variables").write_text("TOLD=first\nANOTHER=1")
        environment = {"DJANGO_SETTINGS_MODULE": "own_settings", "GIVEN_SECRET": "s"}
        server = serve(workers=2, environment=environment)
        server.write_hook(None, HOOK.replace("{answer}", "{os.environ['TOLD']}"))
        return server

    return start


@pytest.mark.parametrize(
    "more",
    [
        "",
        "import socket; socket.setdefaulttimeout(0.3)",
        "SECRET = os.environ.pop('GIVEN_SECRET')",
    ],
)
def test_a_reload_takes_variables_from_their_file(serve_with, tmp_path, more):
    server = serve_with(more)
    address = server.wait_up()
    assert ask_once(address)[1] == "first"
    (tmp_path / "variables").write_text("TOLD=second")
    time.sleep(0.5)  # longer than the timeout
    server.reload()
    assert ask_once(address)[1] == "second"
    time.sleep(0.5)
    assert server.stop() == 0
    assert "Traceback" not in server.process.output
    assert "killed" not in server.process.output


def test_a_reload_says_that_it_keeps_the_address(serve_with, tmp_path):
    """But not of a key that the command line stands above: it would change nothing."""
    server = serve_with(
        "GRPCSERVER['metrics'] = os.environ.get('METRICS')\n"
        "GRPCSERVER['port'] = 1 if 'METRICS' in os.environ else 2"
    )
    server.wait_up()
    for variables in ("METRICS=127.0.0.1:1", "METRICS=127.0.0.1:1", ""):
        (tmp_path / "variables").write_text(f"TOLD=second\n{variables}".strip())
        server.reload()
    assert server.stop() == 0
    assert server.process.output.count("GRPCSERVER['metrics'] is '127.0.0.1:1' now") == 1
    assert server.process.output.count("a reload keeps the address") == 1


def test_starting_a_worker_runs_nothing_of_the_parents_libraries(serve_with):
    """As grpcio's handlers of forks, which wait for the threads of its clients."""
    server = serve_with("os.register_at_fork(before=lambda: os.write(2, b'forked\\n'))")
    server.wait_up()
    server.reload()
    assert server.stop() == 0
    assert "forked" not in server.process.output
