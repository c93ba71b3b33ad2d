"""Servers in a process of their own."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import PATIENCE

from django_grpc_testtools.executor import GRPCServerForTests

MANAGE = """
import os, sys
from django.core.management import execute_from_command_line
sys.path[:0] = {path!r}
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def manage_py(tmp_path: Path) -> str:
    path = tmp_path / "manage.py"
    path.write_text(MANAGE.format(path=sys.path))
    return str(path)


def test_it_starts_with_this_python_on_a_free_port(manage_py: str) -> None:
    pytest.importorskip("mirakuru", reason="the Python package mirakuru is not installed")
    from sampleapp.helloworld_pb2 import HelloRequest
    from sampleapp.helloworld_pb2_grpc import GreeterStub

    server = GRPCServerForTests(manage_py, {"--max_workers": 2})
    assert server.process.command_parts[0] == sys.executable
    server.start()
    try:
        with grpc.insecure_channel(server.addr()) as channel:
            reply = GreeterStub(channel).SayHello(
                HelloRequest(name="you"), timeout=PATIENCE, wait_for_ready=True
            )
    finally:
        server.stop()
    assert reply.message == "Hello, you!"


def test_two_servers_have_two_ports_and_params_stay(manage_py: str) -> None:
    pytest.importorskip("mirakuru", reason="the Python package mirakuru is not installed")
    params: dict[str, Any] = {}
    servers = [GRPCServerForTests(manage_py, params) for _ in range(5)]
    assert all(1024 <= server.port <= 65_535 for server in servers)
    assert params == {}
    assert servers[0].addr() == f"localhost:{servers[0].port}"


def test_flags_without_a_value() -> None:
    params = {"--port": 1, "--autoreload": ""}
    assert list(GRPCServerForTests.flat_params(params)) == ["--port", "1", "--autoreload"]


def test_without_mirakuru_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "mirakuru":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install mirakuru"):
        GRPCServerForTests("manage.py")


@pytest.mark.parametrize("port", [0, "x", 70000])
def test_port_that_can_not_be_waited_for_is_refused(port: Any, manage_py: str) -> None:
    pytest.importorskip("mirakuru", reason="the Python package mirakuru is not installed")
    with pytest.raises(ValueError, match="--port must be one to connect to"):
        GRPCServerForTests(manage_py, {"--port": port})
