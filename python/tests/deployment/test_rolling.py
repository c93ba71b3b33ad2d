"""Replacing servers one after another under a steady load, in which no call may fail."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import ServerProcess, wait_until
from load import SteadyLoad

from .servicers import SERVICE
from .support import Envoy, Nginx, Proxy, Servers, call, free_ports, with_call

pytestmark = pytest.mark.slow

RATE = 200

#: Calls after each step, which is to be seen under load: a quarter of a second.
STEP = 50


class Conversation:
    """A stream that is open while its server is replaced, and comes to its own end."""

    def __init__(self, proxy: Proxy) -> None:
        self._questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers = call(
            proxy.channel(), "stream_stream", "EchoEach", iter(self._questions.get, None)
        )
        self.exchange(b"before")

    def exchange(self, question: bytes) -> None:
        self._questions.put(question)
        assert next(self._answers) == question

    def finish(self) -> None:
        self.exchange(b"after")
        self._questions.put(None)
        assert list(self._answers) == []
        assert self._answers.code() is grpc.StatusCode.OK


class Rollout:
    """Replaces the server behind a proxy again and again, each on the next of some ports."""

    def __init__(self, servers: Servers, ports: list[int], **setting: Any) -> None:
        self._servers = servers
        self._ports = ports
        self._setting = setting
        self._retired: dict[int, ServerProcess] = {}
        self._count = 1
        self._port = ports[0]
        self.current = servers.start(self._port, **setting)

    def replace(
        self, proxy: Proxy, load: SteadyLoad, wait_until_known: Callable[..., None]
    ) -> None:
        """Start the next server, wait until the proxy knows it, and tell the old one to stop."""
        old, old_port = self.current, self._port
        self._port = self._ports[self._count % len(self._ports)]
        self._expect_end(self._port)
        self.current = self._servers.start(self._port, **self._setting)
        self._count += 1
        wait_until_known(self._port, f"server-{self._count}")
        conversations = [Conversation(proxy) for _ in range(2)]
        load.wait_for_calls(STEP)
        old.send(signal.SIGTERM)
        self._retired[old_port] = old
        load.wait_for_calls(2 * STEP)
        for conversation in conversations:
            conversation.finish()

    def finish(self) -> None:
        """Wait for the end of those that were told to stop."""
        for port in list(self._retired):
            self._expect_end(port)

    def _expect_end(self, port: int) -> None:
        if (server := self._retired.pop(port, None)) is not None:
            assert server.wait() == 0, server.output


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("drain_delay", "workers", "rounds"),
    [(4, 1, 10), (0, 1, 5), (0, 2, 3)],
    ids=["delay", "at once", "workers"],
)
def test_replacements_behind_envoy_lose_no_call(
    servers: Servers, tmp_path: Path, drain_delay: float, workers: int, rounds: int
) -> None:
    """With a delay Envoy knows before the drain; without one it learns by what is refused."""
    ports = free_ports(6)
    rollout = Rollout(servers, ports, drain_delay=drain_delay, workers=workers)
    envoy = Envoy(tmp_path, ports)
    envoy.wait_until_healthy(ports[0])
    try:
        with SteadyLoad(envoy.target, f"/{SERVICE}/Echo", b"x" * 100, RATE) as load:
            for _ in range(rounds):
                rollout.replace(envoy, load, lambda port, _: envoy.wait_until_healthy(port))
        rollout.finish()
        retries = envoy.stats("cluster.atlas.upstream_rq_retry$")
    finally:
        envoy.end()

    assert load.failures == []
    assert load.calls >= rounds * 3 * STEP
    if drain_delay:
        # Nobody was sent to a server that was about to drain, so nobody had to be sent elsewhere.
        assert retries == {"cluster.atlas.upstream_rq_retry": 0}


@pytest.mark.timeout(180)
def test_replacements_that_nginx_is_told_of_lose_no_call(servers: Servers, tmp_path: Path) -> None:
    """Its configuration names the new server before the old one is told to stop."""
    ports = free_ports(4)
    rollout = Rollout(servers, ports)
    nginx = Nginx(tmp_path, ports[:1])
    try:
        with SteadyLoad(nginx.target, f"/{SERVICE}/Echo", b"x" * 100, RATE) as load:
            for _ in range(3):
                rollout.replace(nginx, load, lambda port, _: nginx.reload([port]))
        rollout.finish()
    finally:
        nginx.end()

    assert load.failures == []


@pytest.mark.timeout(180)
def test_replacements_that_nginx_finds_by_itself_lose_no_call(
    servers: Servers, tmp_path: Path
) -> None:
    """Servers come back on addresses that nginx knows, the next one when it uses the last one."""
    ports = free_ports(3)
    rollout = Rollout(servers, ports)
    nginx = Nginx(tmp_path, ports)
    channel = nginx.channel()

    def wait_until_used(_port: int, name: str) -> None:
        def is_used() -> bool:
            _, done = with_call(channel, "Echo", b"")
            return ("served-by", name) in done.trailing_metadata()

        wait_until(is_used, f"nginx uses {name}")

    try:
        with SteadyLoad(nginx.target, f"/{SERVICE}/Echo", b"x" * 100, RATE) as load:
            for _ in range(3):
                rollout.replace(nginx, load, wait_until_used)
        rollout.finish()
    finally:
        nginx.end()

    assert load.failures == []


def test_calls_past_the_grace_end_with_unavailable(servers: Servers, tmp_path: Path) -> None:
    """Those that the server cuts are told so, through Envoy too, and are not begun anew."""
    ports = free_ports(2)
    first, _ = servers.start(ports[0], grace=0.5), servers.start(ports[1])
    envoy = Envoy(tmp_path, ports)
    envoy.wait_until_healthy(*ports)
    try:
        channel = envoy.channel()
        begun = [call(channel, "unary_stream", "Wait", b"60", timeout=60) for _ in range(4)]
        lost = [answers for answers in begun if next(answers) == b"server-1"]
        assert lost
        first.send(signal.SIGTERM)
        for answers in lost:
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "Cancelling all calls"
        assert first.wait() == 0
        for answers in begun:
            answers.cancel()
    finally:
        envoy.end()


def test_a_proxy_that_stands_still_during_the_drain_loses_no_call(
    servers: Servers, tmp_path: Path
) -> None:
    """It sends calls on before it sees the GOAWAY that has been waiting for it all the time."""
    ports = free_ports(2)
    old, _ = servers.start(ports[0]), servers.start(ports[1])
    envoy = Envoy(tmp_path, ports)
    envoy.wait_until_healthy(*ports)
    try:
        with SteadyLoad(envoy.target, f"/{SERVICE}/Echo", b"x" * 100, RATE) as load:
            load.wait_for_calls(STEP)
            envoy.process.send(signal.SIGSTOP)
            old.send(signal.SIGTERM)
            old.wait_for("Starting graceful shutdown")
            time.sleep(2)  # as long as it stands still, on a machine that has too much to do
            envoy.process.send(signal.SIGCONT)
            load.wait_for_calls(STEP)
            assert old.wait() == 0
    finally:
        envoy.end()

    assert load.failures == []
