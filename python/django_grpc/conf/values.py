"""Values of the setting's keys: what each may be, and what it becomes.

A parser takes what the setting holds and returns what `ServerConfig` has, or raises `Invalid`. A
reader makes of a text, from an environment variable, what a parser takes.
"""

import dataclasses
import difflib
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from django.utils.functional import LazyObject, Promise

from django_grpc import tls
from django_grpc.addresses import is_url, port_within
from django_grpc.conf.config import (
    DEFAULT_HEALTH_CHECKS,
    AccessLog,
    Credentials,
    Health,
    KeyPair,
    MethodLimits,
)

#: The longest duration, in seconds: what Python's waits and the engine's nanoseconds can count.
CENTURY = 100 * 365 * 86_400
#: The greatest count: gRPC's own numbers are C's int.
MOST = 2**31 - 1
#: The most worker processes.
MOST_WORKERS = 1024


class Invalid(Exception):  # noqa: N818 - never leaves this package
    """Raised by a parser: what is wrong with the value, and what to do about it."""

    def __init__(self, complaint: str, hint: str) -> None:
        super().__init__(complaint, hint)
        self.complaint = complaint
        self.hint = hint

    def inside(self, place: str) -> "Invalid":
        """Return the same about a part of a value, named by what leads to it: ``['timeout']``."""
        return Invalid(f"{place}{self.complaint}", self.hint)


def resolve(value: Any) -> Any:
    """Return what Django's lazy values stand for, in lists and dictionaries too.

    Those are a `SimpleLazyObject`, and numbers and texts of `lazy()`, as of `gettext_lazy`.
    """
    if isinstance(value, LazyObject):
        return resolve(value.__reduce__()[1][0])  # what is pickled is the object itself
    if isinstance(value, Promise):
        promised: Any = value  # it has the methods of what it stands for
        for special, convert in (("__index__", operator.index), ("__float__", float)):
            if hasattr(promised, special):
                return convert(promised)
        return str(promised)
    if isinstance(value, Mapping):
        return {name: resolve(it) for name, it in value.items()}
    if isinstance(value, list | tuple):
        resolved = map(resolve, value)
        return list(resolved) if isinstance(value, list) else tuple(resolved)
    return value


def unknown_keys(given: Mapping[Any, Any], known: Iterable[str]) -> Iterator[Invalid]:
    """Find the keys of a dictionary that mean nothing."""
    names = list(known)
    for name in given:
        if name not in names:
            low = str(name).lower()
            longer = [it for it in names if low and it.startswith(low)]
            close = longer or difflib.get_close_matches(low, names, n=1, cutoff=0.5)
            yield Invalid(
                f" has no key {name!r}.",
                f"Did you mean '{close[0]}'?" if close else f"It has: {', '.join(names)}.",
            )


def parse_paths(example: str) -> Callable[[Any], tuple[str, ...]]:
    """Make a parser of a list of dotted paths, whose hint has the example."""

    def parse(value: Any) -> tuple[str, ...]:
        hint = f"Write for example ['{example}']."
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise Invalid(f" must be a list of dotted paths, not {value!r}.", hint)
        for path in value:
            is_path = isinstance(path, str) and all(it.isidentifier() for it in path.split("."))
            if not is_path or "." not in path:
                raise Invalid(f" holds {path!r}, which is not a dotted path.", hint)
        return tuple(value)

    return parse


def parse_bool(value: Any) -> bool:
    """Take a bool."""
    if not isinstance(value, bool):
        raise Invalid(f" must be True or False, not {value!r}.", "Write True or False.")
    return value


def parse_count(value: Any) -> int:
    """Take a whole number above 0."""
    hint = "Write for example 8."
    if not _is_whole(value) or value == 0:
        raise Invalid(f" must be a whole number above 0, not {value!r}.", hint)
    return _at_most(MOST, value, hint)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def parse_limit(value: Any) -> int | None:
    """Take a whole number above 0, or None for no limit."""
    hint = "In the settings, None is no limit."
    if value is None:
        return None
    if not _is_whole(value) or value == 0:
        raise Invalid(f" must be a whole number above 0 or None, not {value!r}.", hint)
    return _at_most(MOST, value, hint)


def _parse_whole(value: Any, most: int, hint: str) -> int:
    if not _is_whole(value):
        raise Invalid(f" must be a whole number, 0 or more, not {value!r}.", hint)
    return _at_most(most, value, hint)


def _at_most(most: int, value: int, hint: str) -> int:
    # The value is not told: Python writes no number of more than 4300 digits.
    if value > most:
        raise Invalid(f" must be at most {most}.", hint)
    return value


def parse_options(value: Any) -> tuple[tuple[str, Any], ...]:
    """Take channel arguments; their names and values are the engine's to judge."""
    hint = "Write for example [('grpc.max_receive_message_length', 8 * 1024 * 1024)]."
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise Invalid(f" must be a list of (name, value) pairs, not {value!r}.", hint)
    for pair in value:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise Invalid(f" holds {pair!r}, which is not a (name, value) pair.", hint)
    return tuple((name, argument) for name, argument in value)


def parse_seconds(value: Any) -> float:
    """Take a number of seconds, 0 or more."""
    if not _is_duration(value):
        hint = "Write for example 2.5."
        raise Invalid(f" must be a number of seconds, 0 or more, not {value!r}.", hint)
    return _in_a_century(value, "Write for example 2.5.")


def _is_duration(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf


def _in_a_century(seconds: float, hint: str) -> float:
    if seconds > CENTURY:
        raise Invalid(f" must be at most {CENTURY} seconds, which is a century.", hint)
    return float(seconds)


def parse_host(value: Any) -> str:
    """Take an address without a port."""
    if not isinstance(value, str) or not value.strip() or is_url(value.strip()):
        raise Invalid(
            f" must be an address, not {value!r}.",
            "Write '[::]' for every address, '127.0.0.1', or 'unix:/run/myproject/grpc.sock'.",
        )
    host = value.strip()
    if "\0" in host or any("\ud800" <= it <= "\udfff" for it in host):
        raise Invalid(f" must be an address, not {value!r}.", "It has a character that none has.")
    if (port := port_within(host)) is not None:
        raise Invalid(
            f" must be an address without a port, not {value!r}.",
            f"Give the port as --port {port}, or both as an argument: grpcserver {host}.",
        )
    return host


def parse_port(value: Any) -> int:
    """Take the number of a TCP port, or the text of one."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not _is_whole(number) or number > 65535:
        raise Invalid(f" must be a port number, 0 to 65535, not {value!r}.", "Write 50051.")
    return int(number)


_CREDENTIAL_KEYS = (
    "private_key",
    "certificate_chain",
    "root_certificates",
    "require_client_auth",
    "minimum_tls_version",
    "cipher_suites",
)


def parse_credentials(value: Any) -> Credentials | None:
    """Take the key pairs for TLS."""
    hint = (
        "Write [{'private_key': 'key.pem', 'certificate_chain': 'chain.pem'}], "
        "or None for plaintext."
    )
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise Invalid(
            f" must be a list with at least one dictionary, or None, not {value!r}.", hint
        )
    # All but the pair hold for the whole listener: any entry may give them, and all must agree.
    shared: dict[str, set[Any]] = {name: set() for name in _CREDENTIAL_KEYS[2:]}
    pairs = []
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise Invalid(f"[{index}] must be a dictionary, not {entry!r}.", hint)
        for unknown in unknown_keys(entry, _CREDENTIAL_KEYS):
            raise unknown.inside(f"[{index}]")
        paths = {}
        for name in ("private_key", "certificate_chain", "root_certificates"):
            path = entry.get(name)
            if path is None and name == "root_certificates":
                continue
            try:
                paths[name] = _parse_file(path, hint)
            except Invalid as invalid:
                raise invalid.inside(f"[{index}]['{name}']") from None
        if "root_certificates" in paths:
            shared["root_certificates"].add(paths.pop("root_certificates"))
        for name, parse in _SHARED_CREDENTIAL_KEYS.items():
            if name in entry:
                try:
                    shared[name].add(parse(entry[name]))
                except Invalid as invalid:
                    raise invalid.inside(f"[{index}]['{name}']") from None
        pairs.append(KeyPair(**paths))
    for name, given in shared.items():
        if len(given) > 1:
            raise Invalid(
                f" has entries that disagree about '{name}'.",
                "It holds for the whole server: give it in one entry.",
            )
    if True in shared["require_client_auth"] and not shared["root_certificates"]:
        raise Invalid(
            " has 'require_client_auth' without 'root_certificates'.",
            "Add 'root_certificates': the path of the PEM file with the clients' authorities.",
        )
    common = {name: values.pop() for name, values in shared.items() if values}
    return Credentials(key_pairs=tuple(pairs), **common)


def _parse_file(value: Any, hint: str) -> str:
    # What is no path may be the key itself, which must not get into a log.
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        kind = None if value is None else type(value).__name__
        raise Invalid(f" must be the path of a PEM file, not {kind}.", hint)
    if "-----BEGIN" in path or "\n" in path:
        raise Invalid(" must be the path of a PEM file, not what is in it.", hint)
    if not path or "\0" in path:
        raise Invalid(f" must be the path of a PEM file, not {path!r}.", hint)
    return path


def _parse_tls_version(value: Any) -> str:
    if not isinstance(value, str) or value not in tls.VERSIONS:
        raise Invalid(
            f" must be {' or '.join(map(repr, tls.VERSIONS))}, not {value!r}.",
            "HTTP/2 allows no lower version.",
        )
    return value


def _parse_cipher_suites(value: Any) -> tuple[str, ...]:
    names = ", ".join(tls.CIPHER_SUITES.values())
    if not isinstance(value, list | tuple) or not value:
        raise Invalid(f" must be a list of cipher suites, not {value!r}.", f"Choose of: {names}.")
    for suite in value:
        if not tls.is_cipher_suite(suite):
            raise Invalid(
                f" holds {suite!r}, which is no cipher suite of TLS 1.2 that HTTP/2 allows.",
                f"Choose of: {names}. Those of TLS 1.3 are fixed.",
            )
    return tuple(value)


_SHARED_CREDENTIAL_KEYS: dict[str, Callable[[Any], Any]] = {
    "require_client_auth": parse_bool,
    "minimum_tls_version": _parse_tls_version,
    "cipher_suites": _parse_cipher_suites,
}


def parse_workers(value: Any) -> int:
    """Take a number of worker processes; 0 is one for each processor."""
    return _parse_whole(value, MOST_WORKERS, "Write 0 for all processors.")


def parse_jitter(value: Any) -> int | None:
    """Take a whole number, or None for the default."""
    hint = "Write 0 for none, or None for a tenth of 'worker_max_calls'."
    return None if value is None else _parse_whole(value, MOST, hint)


def parse_duration(value: Any) -> float | None:
    """Take a number of seconds above 0, or None for no limit."""
    hint = "In the settings, None is no limit."
    if value is None:
        return None
    if not _is_duration(value) or value == 0:
        raise Invalid(f" must be a number of seconds above 0 or None, not {value!r}.", hint)
    return _in_a_century(value, hint)


def parse_metrics(value: Any) -> str | None:
    """Take ``address:port`` or ``unix:PATH``, or None."""
    if value is None:
        return None
    if isinstance(value, str):
        host, _, port = value.rpartition(":")
        is_port = port.isdecimal() and int(port) <= 65535 and (":" not in host or host[0] == "[")
        if (value.startswith(("unix:", "unix-abstract:")) and port) or (host and is_port):
            return value
    raise Invalid(
        f" must be an address with a port, not {value!r}.",
        "Write for example '127.0.0.1:9090', or 'unix:/run/myproject/metrics.sock'.",
    )


def parse_pidfile(value: Any) -> str | None:
    """Take the path of a file, or None."""
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise Invalid(
            f" must be the path of a file, not {value!r}.", "Write '/run/myproject/grpc.pid'."
        )
    return path


def parse_opentelemetry(value: Any) -> bool | None:
    """Take a bool, or None for what is installed."""
    if value is not None and not isinstance(value, bool):
        raise Invalid(f" must be True, False or None, not {value!r}.", "Write True or False.")
    return value


def parse_health(value: Any) -> Health | None:
    """Take a bool or the dictionary of the readiness checks."""
    if isinstance(value, bool):
        return Health() if value else None
    return Health(**_parse_dictionary(value, _HEALTH_KEYS, "True, False or a dictionary"))


def adjust_health(health: Health, value: Any) -> Health | None:
    """Keep the checks of the setting where a flag or a variable says yes."""
    return health if value is True else parse_health(value)


def adjust_access_log(log: AccessLog, value: Any) -> AccessLog | None:
    """Change the format of the setting, and keep the rest."""
    if value is True:
        return log
    adjusted = parse_access_log(value)
    return adjusted and dataclasses.replace(log, format=adjusted.format)


def parse_access_log(value: Any) -> AccessLog | None:
    """Take a bool, a format or the dictionary."""
    if value is None or isinstance(value, bool):
        return AccessLog() if value else None
    if isinstance(value, str):
        return AccessLog(format=_parse_format(value))
    return AccessLog(
        **_parse_dictionary(value, _ACCESS_LOG_KEYS, "True, False, 'text', 'json' or a dictionary")
    )


def parse_methods(value: Any) -> dict[str, MethodLimits]:
    """Take the limits of methods, by their paths."""
    hint = "Write for example {'/package.Service/Method': {'timeout': 5}}."
    if not isinstance(value, Mapping):
        raise Invalid(f" must be a dictionary, not {value!r}.", hint)
    methods = {}
    for path, limits in value.items():
        if not (isinstance(path, str) and (path == "*" or _is_method_path(path))):
            raise Invalid(
                f" has the key {path!r}, which is no path of a method.",
                "Write '/package.Service/Method', '/package.Service/*', or '*' for all others.",
            )
        try:
            parsed = MethodLimits(**_parse_dictionary(limits, _METHOD_KEYS, "a dictionary"))
        except Invalid as invalid:
            raise invalid.inside(f"['{path}']") from None
        if parsed.queue and parsed.concurrency is None:
            raise Invalid(
                f"['{path}'] has 'queue' without 'concurrency'.",
                "Only calls past 'concurrency' wait: give both, or neither.",
            )
        most = parsed.max_timeout
        if most is not None and parsed.timeout is not None and parsed.timeout > most:
            raise Invalid(
                f"['{path}'] has a 'timeout' longer than its 'max_timeout'.",
                "'timeout' is what a call gets whose client asks for none, 'max_timeout' the most "
                "that any gets.",
            )
        methods[path] = parsed
    return methods


def _is_method_path(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and parts[0] == "" and all(parts[1:])


def _parse_queue(value: Any) -> int:
    return _parse_whole(value, MOST, "Write for example 8.")


def _parse_format(value: Any) -> str:
    if value not in ("text", "json"):
        raise Invalid(f" must be 'text' or 'json', not {value!r}.", "Write 'text'.")
    return str(value)


def _parse_share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Invalid(f" must be a number from 0 to 1, not {value!r}.", "Write 1 for all calls.")
    return float(value)


def _parse_positive(value: Any) -> float:
    hint = "Write for example 10."
    if not _is_duration(value) or value == 0:
        raise Invalid(f" must be a number of seconds above 0, not {value!r}.", hint)
    return _in_a_century(value, hint)


def _parse_dictionary(
    value: Any, keys: Mapping[str, Callable[[Any], Any]], what: str
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Invalid(f" must be {what}, not {value!r}.", f"A dictionary has: {', '.join(keys)}.")
    for unknown in unknown_keys(value, keys):
        raise unknown
    parsed = {}
    for name, given in value.items():
        try:
            parsed[name] = keys[name](given)
        except Invalid as invalid:
            raise invalid.inside(f"['{name}']") from None
    return parsed


_HEALTH_KEYS: dict[str, Callable[[Any], Any]] = {
    "checks": parse_paths(DEFAULT_HEALTH_CHECKS[0]),
    "interval": _parse_positive,
    "timeout": _parse_positive,
    "max_queue_wait": _parse_positive,
}
_ACCESS_LOG_KEYS: dict[str, Callable[[Any], Any]] = {
    "format": _parse_format,
    "sample": _parse_share,
    "slow": parse_seconds,
    "sql": parse_bool,
}
_METHOD_KEYS: dict[str, Callable[[Any], Any]] = {
    "concurrency": parse_limit,
    "queue": _parse_queue,
    "timeout": parse_duration,
    "max_timeout": parse_duration,
    "max_message": parse_limit,
    "retry_after": parse_seconds,
}


def read_number(text: str) -> Any:
    """Read a number, or ``none`` for None; what is neither is left for the parser to refuse."""
    if text.lower() == "none":
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def read_bool(text: str) -> Any:
    """Read a bool, or ``none`` for None; what is neither is left for the parser."""
    return _BOOLS.get(text.lower(), text)


def read_text_or_none(text: str) -> Any:
    """Read a text, or ``none`` for None."""
    return None if text.lower() == "none" else text


def read_text(text: str) -> Any:
    """Read a text."""
    return text


_BOOLS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
    "none": None,
}
