"""Servers with worker processes, ended with the test."""

import pytest

from .support import Workers


@pytest.fixture
def serve(tmp_path):
    """Start a server with two workers, or as told; all its processes are killed at the end."""
    servers = []

    def serve(*arguments, environment=None, **setting):
        setting = {"workers": 2, **setting}
        if not any(it.startswith(("--port", "unix:")) for it in arguments):
            arguments = ("--port", "0", *arguments)
        server = Workers(tmp_path, *arguments, environment=environment, **setting)
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.end()
