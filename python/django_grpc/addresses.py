"""Addresses to listen on, as gRPC writes them: ``[::1]:50051``, ``unix:/run/app.sock``."""

import re

_DESCRIPTOR = re.compile(r"fd:\d+")
_UNIX = ("unix:", "unix-abstract:")
# An IPv6 address without brackets has more than one colon.
_WITH_PORT = re.compile(r"(?:\[[^]]*\]|(?!fd:)[^:\[\]]+):(\d+)")
_URL = re.compile(r"(https?|grpcs?|tcp|udp|sctp)://", re.IGNORECASE)


def is_unix(address: str) -> bool:
    """Whether an address names a Unix socket."""
    return address.startswith(_UNIX)


def is_url(address: str) -> bool:
    """Whether an address begins as a URL does, which is none to listen on."""
    return _URL.match(address) is not None


def port_within(host: str) -> str | None:
    """Return the port that was written behind a host, None where there is none."""
    found = _WITH_PORT.fullmatch(host)
    return found and found[1]


def format_address(host: str, port: int | str) -> str:
    """Join a host and a port; a Unix socket, and ``fd:3`` for one that listens, have none."""
    if is_unix(host) or _DESCRIPTOR.fullmatch(host):
        return host
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{port}"


def parse_addrport(host: str, port: int | str, addrport: int | str | None) -> tuple[str, int]:
    """Find the address that the command line names.

    Args:
        host: The one of ``--host`` or of the settings.
        port: The one of ``--port``; text where `call_command` was given some.
        addrport: The positional argument, which stands above both.

    Raises:
        ValueError: One of them is no address; the text says which.
    """
    addrport = "" if addrport is None else str(addrport)
    if is_unix(addrport):
        return addrport, 0
    if addrport:
        given_host, _, given_port = addrport.rpartition(":")
        if not given_port.isdecimal() or (":" in given_host and not given_host.startswith("[")):
            raise ValueError(
                f"{addrport!r} is not a port number, an address:port pair or a unix:PATH. Write "
                "50051, 127.0.0.1:50051, [::1]:50051 or unix:/run/myproject/grpc.sock."
            )
        host, port = given_host or host, int(given_port)
    number = int(port) if isinstance(port, int) or str(port).isdecimal() else -1
    if not 0 <= number <= 65535:
        raise ValueError(f"{port} is not a port number: it must be 0 to 65535.")
    return host, number
