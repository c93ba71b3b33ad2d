"""`manage.py grpcserver` in a process of its own."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# Seconds that a server may take until it accepts connections.
_PATIENCE = 60


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    return port


class GRPCServerForTests:
    """A server that runs a project's `manage.py grpcserver`.

        server = GRPCServerForTests("manage.py", {"--max_workers": 2, "--autoreload": ""})
        server.start()
        channel = grpc.insecure_channel(server.addr())
        ...
        server.stop()

    It has a database connection of its own, and so sees nothing of a test's transaction; for that
    there is `django_grpc_testtools.testcases.GRPCTestCase`. Needs the package mirakuru.

    Args:
        manage_py: Path of the project's `manage.py`.
        params: Flags of the command and their values; "" for a flag without one. The default of
            `--port` is a free port.

    Attributes:
        port: The port.
        process: The executor of mirakuru.

    Raises:
        ImportError: mirakuru is not installed.
        ValueError: The port is none that could be waited for.
    """

    def __init__(self, manage_py: str, params: Mapping[str, Any] | None = None) -> None:
        try:
            from mirakuru import TCPExecutor
        except ImportError as error:
            raise ImportError(
                "GRPCServerForTests needs the package mirakuru: pip install mirakuru"
            ) from error
        params = dict(params or {})
        self.port = params.setdefault("--port", free_port())
        if not (str(self.port).isdecimal() and 0 < int(self.port) <= 65535):
            raise ValueError(f"--port must be one to connect to, not {self.port!r}; leave it out.")
        self.manage_py = manage_py
        self.process = TCPExecutor(
            [sys.executable, str(manage_py), "grpcserver", *self.flat_params(params)],
            host="localhost",
            port=int(self.port),
            timeout=_PATIENCE,
        )

    @classmethod
    def flat_params(cls, dict_: Mapping[str, Any]) -> Iterator[str]:
        """Return flags and values as a command line has them."""
        for flag, value in dict_.items():
            yield str(flag)
            if str(value) != "":
                yield str(value)

    def addr(self) -> str:
        """Return the address for a channel."""
        return f"localhost:{self.port}"

    def start(self) -> None:
        """Start the process; return when it accepts connections.

        Raises:
            mirakuru.TimeoutExpired: It does not within a minute; others of mirakuru's if it ends.
        """
        self.process.start()

    def stop(self) -> None:
        """Stop the process; return when it has ended."""
        self.process.stop()
