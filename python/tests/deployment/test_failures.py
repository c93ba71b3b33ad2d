"""Servers that die, that are not well, or that are not there, behind each proxy."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import grpc
import pytest
from harness import PATIENCE, wait_until
from load import SteadyLoad

from .servicers import SERVICE
from .support import Envoy, Nginx, Proxy, Servers, call, free_ports, with_call

pytestmark = pytest.mark.slow


def served_by(proxy: Proxy, channel: grpc.Channel) -> str:
    _, done = with_call(channel, "Echo", b"")
    return str(dict(done.trailing_metadata())["served-by"])


def begin_waits(channel: grpc.Channel, count: int) -> list[tuple[str, grpc.Call]]:
    """Begin calls that wait, and say which server has each."""
    begun = []
    for _ in range(count):
        answers = call(channel, "unary_stream", "Wait", b"60", timeout=60)
        begun.append((next(answers).decode(), answers))
    return begun


@pytest.fixture(params=["envoy", "nginx"])
def pair(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path):
    """Two servers behind a proxy: `(proxy, [server-1, server-2])`."""
    ports = free_ports(2)
    running = [servers.start(port) for port in ports]
    proxy: Proxy
    if request.param == "envoy":
        proxy = envoy = Envoy(tmp_path, ports)
        envoy.wait_until_healthy(*ports)
    else:
        proxy = Nginx(tmp_path, ports)
    yield proxy, running
    proxy.end()


def test_a_server_that_is_killed_loses_its_own_calls_only(pair) -> None:
    proxy, (first, _) = pair
    channel = proxy.channel()
    begun = begin_waits(channel, 8)
    assert {name for name, _ in begun} == {"server-1", "server-2"}
    first.send(signal.SIGKILL)
    # While it is taken apart its port may still be open, and a call into it may have been run for
    # all that Envoy knows.
    first.wait()

    lost = [answers for name, answers in begun if name == "server-1"]
    # nginx may keep what it has to say of them until something else happens on the connection.
    wait_until(
        lambda: bool(served_by(proxy, channel)) and not any(it.is_active() for it in lost),
        "the end of the calls that were lost",
    )
    for answers in lost:
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    # The other's calls go on, and so do new ones: what a dead server refuses the other one takes.
    assert all(answers.is_active() for name, answers in begun if name == "server-2")
    channel = proxy.channel()
    assert {served_by(proxy, channel) for _ in range(50)} == {"server-2"}
    for _, answers in begun:
        answers.cancel()


def test_a_call_that_a_server_may_have_run_is_not_repeated(pair) -> None:
    """It ends a server in the middle. Were it sent again, it would end the other one too."""
    proxy, (first, second) = pair
    channel = proxy.channel()
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "unary_unary", "Die", b"")

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: not (first.is_running() and second.is_running()), "the server has ended")
    assert first.is_running() or second.is_running()
    assert served_by(proxy, channel) in ("server-1", "server-2")


@pytest.mark.parametrize("kind", ["envoy", "nginx"])
def test_no_server_at_all_is_unavailable(kind: str, tmp_path: Path) -> None:
    """At once, and as a gRPC status: not a page of HTML, nor a deadline that passes."""
    ports = free_ports(2)
    proxy = Envoy(tmp_path, ports) if kind == "envoy" else Nginx(tmp_path, ports)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            call(proxy.channel(), "unary_unary", "Echo", b"")
    finally:
        proxy.end()

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    if kind == "nginx":
        assert caught.value.details() == "no server available"


# Envoy alone asks the health service, and may repeat calls that only read.


@pytest.fixture
def envoy_pair(servers: Servers, tmp_path: Path):
    """Two servers behind Envoy: `(envoy, [port, port], [server-1, server-2])`."""
    ports = free_ports(2)
    running = [servers.start(port) for port in ports]
    envoy = Envoy(tmp_path, ports)
    envoy.wait_until_healthy(*ports)
    yield envoy, ports, running
    envoy.end()


def set_health(port: int, status: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call(channel, "unary_unary", "SetHealth", status.encode())


def test_a_server_that_is_not_serving_gets_no_new_calls_and_keeps_its_old_ones(envoy_pair) -> None:
    envoy, ports, _ = envoy_pair
    begun = begin_waits(envoy.channel(), 6)
    assert {name for name, _ in begun} == {"server-1", "server-2"}
    set_health(ports[0], "NOT_SERVING")
    wait_until(lambda: not envoy.is_healthy(ports[0]), "Envoy has taken it out")

    channel = envoy.channel()
    assert {served_by(envoy, channel) for _ in range(50)} == {"server-2"}
    assert all(answers.is_active() for _, answers in begun)

    set_health(ports[0], "SERVING")
    envoy.wait_until_healthy(ports[0])
    assert {served_by(envoy, channel) for _ in range(50)} == {"server-1", "server-2"}
    for _, answers in begun:
        answers.cancel()


def test_servers_that_are_all_not_serving_get_calls_all_the_same(envoy_pair) -> None:
    """When a machine stands still all checks fail, and servers are well that seem to be ill."""
    envoy, ports, _ = envoy_pair
    for port in ports:
        set_health(port, "NOT_SERVING")
    wait_until(lambda: not any(map(envoy.is_healthy, ports)), "Envoy has taken them out")

    channel = envoy.channel()
    assert {served_by(envoy, channel) for _ in range(50)} == {"server-1", "server-2"}
    # One that is well has all of them again.
    set_health(ports[1], "SERVING")
    envoy.wait_until_healthy(ports[1])
    assert {served_by(envoy, channel) for _ in range(50)} == {"server-2"}


def test_errors_of_servicers_take_no_server_out(envoy_pair) -> None:
    """A fault in the code is on all servers, and slow queries are nobody's illness."""
    envoy, ports, _ = envoy_pair
    channel = envoy.channel()
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ):
        for _ in range(20):
            with pytest.raises(grpc.RpcError):
                call(channel, "unary_unary", "Fail", str(code.value[0]).encode())

    assert all(map(envoy.is_healthy, ports))
    assert {served_by(envoy, channel) for _ in range(50)} == {"server-1", "server-2"}


def test_calls_that_read_survive_the_death_of_a_server(envoy_pair) -> None:
    """kill -9 under 500 calls a second: those in flight are sent again, and none fails."""
    envoy, ports, (first, _) = envoy_pair
    with SteadyLoad(envoy.target, f"/{SERVICE}/GetEcho", b"x" * 100) as load:
        load.wait_for_calls(500)
        first.send(signal.SIGKILL)
        load.wait_for_calls(500)
        wait_until(lambda: not envoy.is_healthy(ports[0]), "Envoy has taken it out")
        load.wait_for_calls(250)

    assert load.failures == []


def test_envoy_keeps_the_deadline_of_a_call_that_waits_for_nobody(
    servers: Servers, tmp_path: Path
) -> None:
    """A stopped process accepts connections and answers nothing: deadlines still hold."""
    (port,) = free_ports(1)
    server = servers.start(port)
    envoy = Envoy(tmp_path, [port])
    envoy.wait_until_healthy(port)
    channel = envoy.channel()
    assert served_by(envoy, channel) == "server-1"
    server.pause()
    begun = time.monotonic()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "unary_unary", "Echo", b"", timeout=1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: not envoy.is_healthy(port), "Envoy has taken it out")
    finally:
        server.send(signal.SIGCONT)
    envoy.wait_until_healthy(port)
    assert served_by(envoy, channel) == "server-1"
    assert time.monotonic() - begun < PATIENCE
    envoy.end()
