"""The commands' arguments."""

import argparse
import re

from django_grpc.addresses import is_unix
from django_grpc.conf.keys import Flag
from django_grpc.conf.values import CENTURY


def positive_seconds(text: str) -> float:
    """Read a number of seconds above 0.

    Raises:
        ArgumentTypeError: It is none, or more than a century.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    if value > CENTURY:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {CENTURY} seconds, a century")
    return value


_HOST_PORT = re.compile(r"((dns|ipv4|ipv6):(//[^/]*/)?)?([^][:/]+|\[[^][]+\]):(?P<port>[0-9]{1,5})")


def target(text: str) -> str:
    """Read the address of a server.

    Raises:
        ArgumentTypeError: It is neither ``HOST:PORT`` nor a Unix socket.
    """
    match = _HOST_PORT.fullmatch(unicode_text(text))
    if not is_unix(text) and not (match and 0 < int(match["port"]) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is neither HOST:PORT nor unix:PATH")
    return text


def unicode_text(text: str) -> str:
    """Refuse bytes that are not UTF-8, which Python reads as surrogates.

    Raises:
        ArgumentTypeError: There are some.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def add_flag(parser: argparse.ArgumentParser, name: str, flag: Flag) -> None:
    """Declare a flag that stands above a key of the settings."""
    # With hyphens, as all are, whatever its name.
    names = dict.fromkeys((name, f"--{name[2:].replace('_', '-')}"))
    if flag.type is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, help=flag.help)
    else:
        read = unicode_text if flag.type is str else flag.type
        parser.add_argument(*names, type=read, choices=flag.choices, help=flag.help)
