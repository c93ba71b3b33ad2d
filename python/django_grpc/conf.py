"""`settings.GRPCSERVER`, read and validated in this one place.

The settings are read when `load()` is called and never at import, so that Django's
`override_settings` works.
"""

import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

SETTING = "GRPCSERVER"


def default_max_workers() -> int:
    """The workers of a server that names no number: processors + 4, and at most 32.

    This is what `concurrent.futures.ThreadPoolExecutor` does, which is what django-grpc leaves it
    to. Each worker may hold a connection to every database of the project.
    """
    count = getattr(os, "process_cpu_count", os.cpu_count)()  # the first came with Python 3.13
    return min(32, (count or 1) + 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """One entry of the setting's ``credentials``: paths of PEM files."""

    private_key: str
    certificate_chain: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """What TLS needs.

    Attributes:
        key_pairs: At least one.
        root_certificates: Path of a PEM file with the authorities that may sign a client's
            certificate. Default: none, client certificates are not asked for.
        require_client_auth: Whether a client without such a certificate is refused; one that shows
            a certificate is verified by it either way. Default: False.
    """

    key_pairs: tuple[KeyPair, ...]
    root_certificates: str | None = None
    require_client_auth: bool = False

    def paths(self) -> Iterator[str]:
        """Iterate over the paths of all the files."""
        for pair in self.key_pairs:
            yield pair.private_key
            yield pair.certificate_chain
        if self.root_certificates is not None:
            yield self.root_certificates


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The validated settings of a server. Each attribute is a key of `settings.GRPCSERVER`.

    Attributes:
        servicers: Dotted paths of the functions that register servicers. Default: none.
        interceptors: Dotted paths of interceptor classes, outermost first. Default: none.
        maximum_concurrent_rpcs: Calls at once before RESOURCE_EXHAUSTED. Default: no limit.
        options: Channel arguments as (name, value). Default: none.
        credentials: For TLS. Default: none, plaintext.
        is_async: The key ``async``: whether the server is an asyncio one. Default: False.
        reflection: Whether the server describes its services to clients. Default: False.
        max_workers: Threads that run calls. Default: see `default_max_workers`.
        grace: Seconds that calls in flight get to end in when the server is stopped. Default: 30.
        host: Address to listen on, or ``unix:PATH``. Default: ``[::]``, every address.
    """

    servicers: tuple[str, ...] = ()
    interceptors: tuple[str, ...] = ()
    maximum_concurrent_rpcs: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    credentials: Credentials | None = None
    is_async: bool = False
    reflection: bool = False
    max_workers: int
    grace: float = 30.0
    host: str = "[::]"


class Problem(NamedTuple):
    """A mistake in the settings.

    Attributes:
        code: The id of the system check that reports it, without the application's label.
        message: One sentence that names the key and the value.
        hint: What to do about it.
    """

    code: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"


class InvalidSetting(ImproperlyConfigured):
    """Raised for a mistake in the settings; its text is the problem's message and hint.

    Attributes:
        problem: The mistake, as the system checks report it.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Invalid(Exception):  # noqa: N818 - never leaves this module
    """Raised by a parser: what is wrong with the value, and what to do about it."""

    def __init__(self, complaint: str, hint: str) -> None:
        super().__init__(complaint, hint)
        self.complaint = complaint
        self.hint = hint


def load() -> ServerConfig:
    """Read `settings.GRPCSERVER`.

    Returns:
        The configuration, with defaults for every key that is absent.

    Raises:
        InvalidSetting: The setting has a mistake, and this is the first.
    """
    config, problems = parse(getattr(settings, SETTING, None))
    if config is None:
        raise InvalidSetting(problems[0])
    return config


def parse(setting: Any) -> tuple[ServerConfig | None, list[Problem]]:
    """Validate a value of the setting without touching a file or importing anything.

    Returns:
        The configuration, None if there are problems; and the problems.
    """
    if setting is None:
        setting = {}
    if not isinstance(setting, Mapping):
        problem = Problem(
            "E001",
            f"{SETTING} must be a dictionary, not {type(setting).__name__}.",
            f"Write {SETTING} = {{'servicers': ['myproject.servicers.grpc_hook']}}.",
        )
        return None, [problem]
    values: dict[str, Any] = {"max_workers": default_max_workers()}
    problems = list(_unknown_keys(setting, _KEYS, SETTING))
    for name, key in _KEYS.items():
        if name not in setting:
            continue
        try:
            values[key.attribute] = key.parse(setting[name])
        except _Invalid as invalid:
            problems.append(
                Problem(key.code, f"{SETTING}['{name}']{invalid.complaint}", invalid.hint)
            )
    return (None if problems else ServerConfig(**values)), problems


def import_configured(key: str, path: str) -> Callable[..., Any]:
    """Import what a dotted path in the setting names.

    Args:
        key: The key of the setting that holds the path, for the message.
        path: For example ``"myproject.servicers.grpc_hook"``.

    Raises:
        InvalidSetting: It can't be imported or called. Whatever else the module raises while
            it is imported is a fault of its code and propagates.
    """
    try:
        found = import_string(path)
    except ImportError as error:
        raise InvalidSetting(
            Problem(
                "E013",
                f"{SETTING}['{key}']: '{path}' can't be imported: {str(error).rstrip('.')}.",
                "Give the dotted path of a module that exists and of a name in it.",
            )
        ) from error
    if not callable(found):
        raise InvalidSetting(
            Problem(
                "E014",
                f"{SETTING}['{key}']: '{path}' is of type {type(found).__name__}, "
                "which can't be called.",
                "Give the dotted path of a function or a class.",
            )
        )
    result: Callable[..., Any] = found
    return result


def _unknown_keys(
    given: Mapping[Any, Any], known: Mapping[str, Any], where: str
) -> Iterator[Problem]:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
            yield Problem(
                "E002",
                f"{where} has no key {name!r}.",
                f"Did you mean '{close[0]}'?" if close else f"It has: {', '.join(known)}.",
            )


def _parse_paths(example: str) -> Callable[[Any], tuple[str, ...]]:
    def parse_paths(value: Any) -> tuple[str, ...]:
        hint = f"Write for example ['{example}']."
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise _Invalid(f" must be a list of dotted paths, not {value!r}.", hint)
        for path in value:
            if not isinstance(path, str) or "." not in path:
                raise _Invalid(f" holds {path!r}, which is not a dotted path.", hint)
        return tuple(value)

    return parse_paths


def _parse_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Invalid(f" must be True or False, not {value!r}.", "Write True or False.")
    return value


def _parse_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _Invalid(f" must be a whole number above 0, not {value!r}.", "Write for example 8.")
    return value


def _parse_limit(value: Any) -> int | None:
    try:
        return None if value is None else _parse_count(value)
    except _Invalid:
        raise _Invalid(
            f" must be a whole number above 0 or None, not {value!r}.",
            "Write None for no limit.",
        ) from None


def _parse_options(value: Any) -> tuple[tuple[str, Any], ...]:
    hint = "Write for example [('grpc.max_receive_message_length', 8 * 1024 * 1024)]."
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise _Invalid(f" must be a list of (name, value) pairs, not {value!r}.", hint)
    for pair in value:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise _Invalid(f" holds {pair!r}, which is not a (name, value) pair.", hint)
    return tuple((name, argument) for name, argument in value)


def _parse_seconds(value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < 0
    ):
        raise _Invalid(f" must be a number of seconds, 0 or more, not {value!r}.", "Write 30.")
    return float(value)


def _parse_host(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Invalid(
            f" must be an address, not {value!r}.",
            "Write '[::]' for every address, '127.0.0.1', or 'unix:/run/myproject/grpc.sock'.",
        )
    return value.strip()


_CREDENTIAL_KEYS = ("private_key", "certificate_chain", "root_certificates", "require_client_auth")


def _parse_credentials(value: Any) -> Credentials | None:
    hint = (
        "Write [{'private_key': 'key.pem', 'certificate_chain': 'chain.pem'}], "
        "or None for plaintext."
    )
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise _Invalid(
            f" must be a list with at least one dictionary, or None, not {value!r}.", hint
        )
    # The last two hold for the whole listener: any entry may give them, and all must agree.
    root_certificates: set[str] = set()
    require_client_auth: set[bool] = set()
    pairs = []
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise _Invalid(f"[{index}] must be a dictionary, not {entry!r}.", hint)
        for problem in _unknown_keys(entry, dict.fromkeys(_CREDENTIAL_KEYS), ""):
            raise _Invalid(f"[{index}]{problem.message}", problem.hint)
        paths = {}
        for name in ("private_key", "certificate_chain", "root_certificates"):
            path = entry.get(name)
            if path is None and name == "root_certificates":
                continue
            if not isinstance(path, str | os.PathLike) or not os.fspath(path):
                raise _Invalid(
                    f"[{index}]['{name}'] must be the path of a PEM file, not {path!r}.", hint
                )
            paths[name] = os.fspath(path)
        if "root_certificates" in paths:
            root_certificates.add(paths.pop("root_certificates"))
        if "require_client_auth" in entry:
            try:
                require_client_auth.add(_parse_bool(entry["require_client_auth"]))
            except _Invalid as invalid:
                raise _Invalid(
                    f"[{index}]['require_client_auth']{invalid.complaint}", invalid.hint
                ) from None
        pairs.append(KeyPair(**paths))
    for name, given in (
        ("root_certificates", root_certificates),
        ("require_client_auth", require_client_auth),
    ):
        if len(given) > 1:
            raise _Invalid(
                f" has entries that disagree about '{name}'.",
                "It holds for the whole server: give it in one entry.",
            )
    if True in require_client_auth and not root_certificates:
        raise _Invalid(
            " has 'require_client_auth' without 'root_certificates'.",
            "Add 'root_certificates': the path of the PEM file with the clients' authorities.",
        )
    return Credentials(
        key_pairs=tuple(pairs),
        root_certificates=next(iter(root_certificates), None),
        require_client_auth=True in require_client_auth,
    )


class _Key(NamedTuple):
    code: str
    attribute: str
    parse: Callable[[Any], Any]


_KEYS: dict[str, _Key] = {
    "servicers": _Key("E003", "servicers", _parse_paths("myproject.servicers.grpc_hook")),
    "interceptors": _Key("E004", "interceptors", _parse_paths("myproject.grpc.AuthInterceptor")),
    "maximum_concurrent_rpcs": _Key("E005", "maximum_concurrent_rpcs", _parse_limit),
    "options": _Key("E006", "options", _parse_options),
    "credentials": _Key("E007", "credentials", _parse_credentials),
    "async": _Key("E008", "is_async", _parse_bool),
    "reflection": _Key("E009", "reflection", _parse_bool),
    "max_workers": _Key("E010", "max_workers", _parse_count),
    "grace": _Key("E011", "grace", _parse_seconds),
    "host": _Key("E012", "host", _parse_host),
}
