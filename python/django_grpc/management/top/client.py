"""Asking a server for its figures, over HTTP."""

import http.client
import json
import socket
import time
from typing import Any, NamedTuple

#: Where a server that listens on every address can be asked.
_LOOPBACK = {"": "localhost", "[::]": "::1", "0.0.0.0": "127.0.0.1"}  # noqa: S104


class MetricsError(Exception):
    """The figures can't be had; its text is a sentence."""


class Sample(NamedTuple):
    """What a server said at one time.

    Attributes:
        time: When it was asked, in seconds of the monotonic clock.
        processes: The members of ``processes`` of ``/calls``.
        calls: Those of its ``calls``.
        metrics: The text of ``/metrics``.
    """

    time: float
    processes: list[dict[str, Any]]
    calls: list[dict[str, Any]]
    metrics: str


class MetricsClient:
    """Asks one server.

    Attributes:
        address: ``host:port`` or ``unix:PATH``, as it was given.
    """

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        """Prepare; nothing is asked yet.

        Args:
            address: As the setting ``metrics`` has it; an ``http://`` before it is borne.
            timeout: Seconds that an answer may take.
        """
        self.address = address.removeprefix("http://").rstrip("/")
        self._timeout = timeout

    def sample(self) -> Sample:
        """Ask for everything.

        Raises:
            MetricsError: There is no server, or no figures of it.
        """
        began = time.monotonic()
        listing = self._ask("/calls")
        try:
            members = json.loads(listing)
            return Sample(began, members["processes"], members["calls"], self._ask("/metrics"))
        except (ValueError, KeyError, TypeError) as error:
            raise MetricsError(self._no_server()) from error

    def _ask(self, path: str) -> str:
        try:
            connection = http.client.HTTPConnection("localhost", timeout=self._timeout)
            connection.sock = self._connect()
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                text = response.read().decode()
            finally:
                connection.close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MetricsError(
                f"No server tells its figures at {self.address}: {reason}. Does it run, with "
                "--metrics?"
            ) from error
        except http.client.HTTPException as error:
            raise MetricsError(self._no_server()) from error
        if response.status != http.HTTPStatus.OK:
            raise MetricsError(self._no_server())
        return text

    def _no_server(self) -> str:
        return (
            f"What answers at {self.address} is no grpcserver's metrics address. Give that of "
            "--metrics, not that of the calls."
        )

    def _connect(self) -> socket.socket:
        if self.address.startswith(("unix:", "unix-abstract:")):
            kind, _, path = self.address.partition(":")
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(self._timeout)
            try:
                connection.connect(f"\0{path}" if kind == "unix-abstract" else _path(path))
            except OSError:
                connection.close()
                raise
            return connection
        host, _, port = self.address.rpartition(":")
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
            raise ValueError("it is no HOST:PORT and no unix:PATH")
        host = _LOOPBACK.get(host, host).strip("[]")
        return socket.create_connection((host, int(port)), self._timeout)


def _path(text: str) -> str:
    """Read ``unix:///run/a.sock`` as ``unix:/run/a.sock``."""
    return text[2:] if text.startswith("///") else text
