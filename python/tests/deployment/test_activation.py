"""A socket that outlives the server, as `deploy/systemd/atlas.socket` does."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PATIENCE, wait_until
from load import SteadyLoad

from .servicers import SERVICE
from .support import HOST, PYTHON_PATH
from .test_files import SYSTEMD, unit

pytestmark = pytest.mark.slow

# What systemd does before it runs the command: the socket is descriptor 3, and the variable names
# this very process.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "1"
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """As much of systemd as a service of `Type=notify` with a socket needs."""

    def __init__(self, folder: Path, workers: int) -> None:
        settings = unit(SYSTEMD / "atlas.socket")
        self.socket = socket.socket()
        self.socket.bind((HOST, 0))
        self.socket.listen(int(settings["Backlog"][0]))
        self.target = f"{HOST}:{self.socket.getsockname()[1]}"
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(folder / "notify"))
        self._notices.settimeout(PATIENCE)
        self._folder = folder
        self._count = 0
        self._environment = {
            **os.environ,
            "PYTHONPATH": PYTHON_PATH,
            "DJANGO_SETTINGS_MODULE": "deployment.settings",
            "NOTIFY_SOCKET": str(folder / "notify"),
            "GRPCSERVER_WORKERS": str(workers),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def wait_for(self, notice: str) -> None:
        """Wait until the service says so."""
        while notice not in self._notices.recv(4096).decode().splitlines():
            pass

    def start(self) -> None:
        """`systemctl start`: run the command of the unit, and wait until it says that it is up."""
        command = unit(SYSTEMD / "atlas.service")["ExecStart"][0].split()
        assert command[1:] == ["/opt/atlas/project/manage.py", "grpcserver"]
        self._count += 1
        descriptor = self.socket.fileno()
        with (self._folder / f"service-{self._count}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _ACTIVATE, str(descriptor)),
                    *(sys.executable, "-m", "django", "grpcserver"),
                ],
                env={**self._environment, "PROBE_NAME": f"server-{self._count}"},
                pass_fds=[descriptor],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_for("READY=1")

    def reload(self) -> None:
        """`systemctl reload`: run ExecReload, and wait until it says that it is up again."""
        assert self.process is not None
        (command,) = unit(SYSTEMD / "atlas.service")["ExecReload"]
        words = command.replace("$MAINPID", str(self.process.pid)).split()
        subprocess.run(words, check=True)
        self.wait_for("READY=1")

    def stop(self) -> None:
        """`systemctl stop`, without its time-out."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.output()

    def output(self) -> str:
        path = self._folder / f"service-{self._count}.log"
        return path.read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.socket.close()
        self._notices.close()


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path, request.param)
    yield manager
    manager.end()


def test_a_restart_refuses_no_call(manager: Manager) -> None:
    """Calls that come while nobody serves wait in the socket for the next server."""
    manager.start()
    with SteadyLoad(manager.target, f"/{SERVICE}/Echo", b"x" * 100) as load:
        for _ in range(3):
            load.wait_for_calls(100)
            manager.stop()
            manager.start()
            load.wait_for_calls(100)

    assert load.failures == []
    manager.stop()


def test_a_client_that_comes_first_waits_for_the_server(manager: Manager) -> None:
    """The socket is there before the service: nobody depends on the order of starts."""
    failures: list[object] = []

    def call_once() -> None:
        with SteadyLoad(manager.target, f"/{SERVICE}/Echo", b"", rate=10, channels=1) as load:
            load.wait_for_calls(1)
        failures.extend(load.failures)

    client = threading.Thread(target=call_once)
    client.start()
    manager.start()
    client.join(PATIENCE)

    assert not client.is_alive()
    assert failures == []
    manager.stop()


def test_a_reload_loses_no_call(tmp_path: Path) -> None:
    """SIGHUP under 500 calls a second, with the worker processes that the unit asks for."""
    manager = Manager(tmp_path, 2)
    try:
        manager.start()
        with SteadyLoad(manager.target, f"/{SERVICE}/Echo", b"x" * 100) as load:
            for _ in range(3):
                manager.reload()
                load.wait_for_calls(100)
        manager.stop()
    finally:
        manager.end()

    assert load.failures == []


def test_the_server_says_where_it_listens(manager: Manager) -> None:
    manager.start()
    port = manager.target.rpartition(":")[2]
    wait_until(lambda: re.search(rf"listening port {port}\b", manager.output()) is not None, "said")
    manager.stop()
