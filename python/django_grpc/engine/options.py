"""gRPC's channel arguments, mapped to the engine's settings.

The names are those of gRPC core
(https://grpc.github.io/grpc/core/group__grpc__arg__keys.html); -1 and the greatest int mean "no
limit" there, and here.
"""

from __future__ import annotations

import difflib
import logging
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from django_grpc.engine.pools import pool_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor

logger = logging.getLogger("django_grpc")

ChannelArgument = tuple[str, Any]

_INT_MAX = 2**31 - 1
_MIB = 1 << 20


class Mapping(NamedTuple):
    """How a channel argument becomes a setting."""

    setting: str
    #: The least value that the engine can work with.
    least: int
    #: The greatest one.
    greatest: int = _INT_MAX
    #: Whether -1 or the greatest int takes the limit away, by leaving the setting out.
    is_limit: bool = False
    #: The same where a setting left out has a limit: what the engine is told instead.
    unlimited: int | None = None


CHANNEL_ARGUMENTS: dict[str, Mapping] = {
    "grpc.max_receive_message_length": Mapping("max_receive_message_length", -1),
    "grpc.max_send_message_length": Mapping("max_send_message_length", -1),
    "grpc.max_concurrent_streams": Mapping("max_concurrent_streams", 1, is_limit=True),
    "grpc.max_metadata_size": Mapping("max_metadata_size", 1, 1 << 30),
    "grpc.absolute_max_metadata_size": Mapping("max_metadata_size", 1, 1 << 30),
    "grpc.keepalive_time_ms": Mapping("keepalive_time_ms", 1),
    "grpc.keepalive_timeout_ms": Mapping("keepalive_timeout_ms", 1),
    "grpc.http2.ping_timeout_ms": Mapping("keepalive_timeout_ms", 1),
    "grpc.keepalive_permit_without_calls": Mapping("keepalive_permit_without_calls", 0, 1),
    "grpc.http2.min_ping_interval_without_data_ms": Mapping("min_recv_ping_interval_ms", 0),
    "grpc.http2.min_recv_ping_interval_without_data_ms": Mapping("min_recv_ping_interval_ms", 0),
    "grpc.http2.max_ping_strikes": Mapping("max_ping_strikes", 0),
    "grpc.http2.lookahead_bytes": Mapping("stream_window_size", 1024),
    "grpc.http2.max_frame_size": Mapping("max_frame_size", 16_384, 16_777_215),
    "grpc.max_connection_idle_ms": Mapping("max_connection_idle_ms", 1, is_limit=True),
    "grpc.max_connection_age_ms": Mapping("max_connection_age_ms", 1, is_limit=True),
    "grpc.max_connection_age_grace_ms": Mapping("max_connection_age_grace_ms", 1, is_limit=True),
    "grpc.server_handshake_timeout_ms": Mapping("handshake_timeout_ms", 1),
    "grpc.so_reuseport": Mapping("reuse_port", 0, 1),
    "grpc.default_compression_algorithm": Mapping("compression", 0, 2),
    "grpc.compression_enabled_algorithms_bitset": Mapping("enabled_compression", 0),
    "django_grpc.max_connections": Mapping("max_connections", 1, is_limit=True),
    "django_grpc.max_held_workers": Mapping("max_held_workers", 0),
    "django_grpc.event_loop_threads": Mapping("event_loop_threads", 1, 1024),
    "django_grpc.send_buffer_size": Mapping("send_buffer_size", 1),
    "django_grpc.statistics_descriptor": Mapping("statistics_descriptor", 0),
    "django_grpc.statistics_slot": Mapping("statistics_slot", 0),
    "django_grpc.connection_window_size": Mapping("connection_window_size", 65_535),
    "django_grpc.max_connection_memory": Mapping(
        "max_connection_memory", _MIB, 1 << 40, is_limit=True, unlimited=-1
    ),
    "django_grpc.max_peer_memory": Mapping(
        "max_peer_memory", _MIB, 1 << 40, is_limit=True, unlimited=-1
    ),
}

#: Whether async methods run on uvloop; read by `django_grpc.engine.loops.loop_factory`.
UVLOOP = "django_grpc.uvloop"

#: Arguments that change nothing here because the engine always behaves as they ask.
WITHOUT_EFFECT = frozenset(
    {
        "grpc.so_reuseaddr",
        "grpc.http2.bdp_probe",
        "grpc.http2.max_pings_without_data",
    }
)


def items(argument: str, given: Any) -> tuple[Any, ...]:
    """Return the items of an argument of `server()`, which may be None.

    Raises:
        TypeError: It can't be iterated over.
    """
    try:
        iterator = iter(() if given is None else given)
    except TypeError:
        raise TypeError(f"{argument} must be a list, not {given!r}.") from None
    return tuple(iterator)


def server_settings(
    thread_pool: Executor | None,
    options: Iterable[ChannelArgument],
    maximum_concurrent_rpcs: int | None,
    compression: grpc.Compression | None,
) -> dict[str, int]:
    """Make the engine's settings of the arguments of `django_grpc.engine.server`.

    Raises:
        TypeError: `maximum_concurrent_rpcs` is no whole number.
        ValueError: It is too great, `compression` is no `grpc.Compression`, or an option is wrong.
    """
    settings = configuration(options)
    settings["max_workers"] = pool_size(thread_pool)
    if maximum_concurrent_rpcs is not None:
        try:
            limit = operator.index(maximum_concurrent_rpcs)
        except TypeError:
            raise TypeError(
                "maximum_concurrent_rpcs must be a whole number or None, not "
                f"{maximum_concurrent_rpcs!r}."
            ) from None
        if limit > _INT_MAX:
            raise ValueError(f"maximum_concurrent_rpcs must be at most {_INT_MAX}.")
        settings["maximum_concurrent_rpcs"] = limit
    if compression is not None:
        try:
            settings["compression"] = int(grpc.Compression(compression))
        except ValueError:
            raise ValueError(
                f"compression must be a grpc.Compression or None, not {compression!r}."
            ) from None
    return settings


def configuration(options: Iterable[ChannelArgument]) -> dict[str, int]:
    """Map channel arguments to the engine's settings.

    Args:
        options: Pairs of name and value; of a name that comes twice the first one counts, as in
            gRPC core.

    Returns:
        Setting names to whole numbers. An argument that the engine does not know is left out, with
        a warning that names it.

    Raises:
        ValueError: An option is no pair, or its value no whole number or out of range.
    """
    settings: dict[str, int] = {}
    seen: set[str] = set()
    for option in options:
        try:
            name, value = option
        except (TypeError, ValueError):
            raise ValueError(
                f"A server option must be a (name, value) pair, not {option!r}."
            ) from None
        if name in WITHOUT_EFFECT or name == UVLOOP or name in seen:
            continue
        seen.add(name)
        mapping = CHANNEL_ARGUMENTS.get(name)
        if mapping is None:
            _warn(name)
            continue
        if not isinstance(value, int):
            raise ValueError(f"The server option {name!r} needs a whole number, not {value!r}.")
        if mapping.is_limit and (value == -1 or value == mapping.greatest == _INT_MAX):
            if mapping.unlimited is not None:
                settings[mapping.setting] = mapping.unlimited
            continue
        if not mapping.least <= value <= mapping.greatest:
            raise ValueError(
                f"The server option {name!r} must be from {mapping.least} to {mapping.greatest}, "
                f"not {value!r}."
            )
        settings[mapping.setting] = int(value)
    return settings


def _warn(name: object) -> None:
    nearest = difflib.get_close_matches(str(name), CHANNEL_ARGUMENTS, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    logger.warning("The server option %r is not supported and has no effect.%s", name, hint)
