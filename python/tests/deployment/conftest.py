"""Fixtures of the tests with real proxies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .support import Envoy, Nginx, Proxy, Servers, free_ports


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Start servers that end with the test."""
    servers = Servers(tmp_path)
    yield servers
    servers.end()


@pytest.fixture(scope="module", params=["envoy", "nginx"])
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Each proxy before one server, for all the tests of a module that do no harm to it."""
    with ExitStack() as at_end:
        folder = tmp_path_factory.mktemp(request.param)
        (port,) = free_ports(1)
        servers = Servers(folder)
        at_end.callback(servers.end)
        servers.start(port)
        proxy: Proxy
        if request.param == "envoy":
            proxy = envoy = Envoy(folder, [port])
            at_end.callback(proxy.end)
            envoy.wait_until_healthy(port)
        else:
            proxy = Nginx(folder, [port])
            at_end.callback(proxy.end)
        yield proxy
