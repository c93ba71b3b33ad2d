"""Clients that know several servers themselves, set up as docs/deployment.md says."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import grpc
import pytest
from harness import wait_until
from load import SteadyLoad

from .servicers import SERVICE
from .support import DEPLOY, Servers, call, free_ports, with_call

Options = tuple[tuple[str, Any], ...]


@pytest.fixture(scope="module")
def options() -> Options:
    """The channel arguments of the page, for a method of the test."""
    page = (DEPLOY.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
    section = page.partition("## Without a proxy")[2]
    found = re.search(r"```python\n(.*?)channel = grpc", section, re.DOTALL)
    assert found
    names: dict[str, Any] = {}
    exec(found.group(1), names)  # noqa: S102 - our own page
    config = names["config"]
    config["methodConfig"][0]["name"] = [{"service": SERVICE, "method": "GetEcho"}]
    return (("grpc.service_config", json.dumps(config)),)


@pytest.fixture
def pair(servers: Servers):
    """Two servers: `([server, server], [port, port], target of both)`."""
    ports = free_ports(2)
    running = [servers.start(port) for port in ports]
    return running, ports, "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)


def served_by(channel: grpc.Channel) -> set[str]:
    return {
        str(dict(with_call(channel, "Echo", b"")[1].trailing_metadata())["served-by"])
        for _ in range(20)
    }


def test_a_client_leaves_out_a_server_that_is_not_serving(pair, options: Options) -> None:
    _, ports, target = pair
    with grpc.insecure_channel(target, options) as channel:
        wait_until(lambda: served_by(channel) == {"server-1", "server-2"}, "both are used")
        with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as direct:
            call(direct, "unary_unary", "SetHealth", b"NOT_SERVING")
            wait_until(lambda: served_by(channel) == {"server-2"}, "one is left out")
            call(direct, "unary_unary", "SetHealth", b"SERVING")
        wait_until(lambda: served_by(channel) == {"server-1", "server-2"}, "both are used again")


def test_a_stop_loses_no_call_of_a_client_that_knows_another_server(pair, options: Options) -> None:
    """Without any policy of retries: GOAWAY and a closed port are all that the client needs."""
    (first, _), _, target = pair
    with SteadyLoad(target, f"/{SERVICE}/Echo", b"x" * 100, options=options) as load:
        load.wait_for_calls(250)
        first.send(signal.SIGTERM)
        assert first.wait() == 0
        load.wait_for_calls(250)

    assert load.failures == []


def test_methods_that_may_run_twice_survive_the_death_of_a_server(pair, options: Options) -> None:
    (first, _), _, target = pair
    with SteadyLoad(target, f"/{SERVICE}/GetEcho", b"x" * 100, options=options) as load:
        load.wait_for_calls(250)
        first.send(signal.SIGKILL)
        load.wait_for_calls(250)

    assert load.failures == []
