"""`settings.GRPCSERVER`, read and validated in this one place.

The settings are read when `load()` is called and never at import, so that Django's
`override_settings` works.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from django_grpc.addresses import is_url
from django_grpc.conf.config import (
    AccessLog,
    Credentials,
    Health,
    KeyPair,
    MethodLimits,
    ServerConfig,
    default_max_workers,
)
from django_grpc.conf.keys import KEYS, Key
from django_grpc.conf.values import Invalid, read_number, resolve, unknown_keys

__all__ = [
    "AccessLog",
    "Credentials",
    "Health",
    "InvalidSetting",
    "KeyPair",
    "MethodLimits",
    "Problem",
    "ServerConfig",
    "call_configured",
    "default_max_workers",
    "import_configured",
    "load",
    "parse",
    "takes",
]

SETTING = "GRPCSERVER"
_WEB_CONCURRENCY = "WEB_CONCURRENCY"


class Problem(NamedTuple):
    """A mistake in the settings.

    Attributes:
        code: The id of the system check that reports it, without the application's label: E for an
            error, W for a warning.
        message: One sentence that names the key and the value.
        hint: What to do about it.
    """

    code: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"


class InvalidSetting(ImproperlyConfigured):
    """Raised for mistakes in the settings; its text is their messages and hints, one in a line.

    Attributes:
        problem: The first mistake, as the system checks report it.
    """

    def __init__(self, problem: Problem, *others: Problem) -> None:
        super().__init__("\n".join(map(str, (problem, *others))))
        self.problem = problem


def load(flags: Mapping[str, Any] | None = None) -> ServerConfig:
    """Read `settings.GRPCSERVER`, the environment, and flags.

    The later one wins: a default, the setting, an environment variable ``GRPCSERVER_KEY``, a flag.
    As for gunicorn, ``WEB_CONCURRENCY`` is the default of ``workers``.

    Args:
        flags: Values by attribute of `ServerConfig`; those that are None were not given.

    Returns:
        The configuration, with defaults for every key that is absent.

    Raises:
        InvalidSetting: Values are wrong; it says which, all of them.
    """
    config, problems = parse(getattr(settings, SETTING, None), os.environ, flags)
    # A server's own: no other command of the project has to mind what is in its environment.
    problems += _unknown_variables(os.environ)
    if config is None or problems:
        raise InvalidSetting(*problems)
    return config


def parse(
    setting: Any,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> tuple[ServerConfig | None, list[Problem]]:
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
    problems = [
        Problem("E002", f"{SETTING}{unknown.complaint}", unknown.hint)
        for unknown in unknown_keys(setting, KEYS)
    ]
    values: dict[str, Any] = {"max_workers": default_max_workers()}
    for name, key in KEYS.items():
        for place, value in _given(name, key, setting, environment or {}, flags or {}):
            previous = values.get(key.attribute)
            try:
                if previous is None or key.adjust is None:
                    values[key.attribute] = key.parse(resolve(value))
                else:
                    values[key.attribute] = key.adjust(previous, resolve(value))
            except Invalid as invalid:
                problems.append(Problem(key.code, f"{place}{invalid.complaint}", invalid.hint))
    return (None if problems else ServerConfig(**values)), problems


# What Kubernetes gives the pods beside a service of the name "grpcserver": PORT=tcp://10.0.0.1:50051.
_OF_KUBERNETES = re.compile(r"(PORT(_\d+_[A-Z]+(_\w+)?)?|SERVICE_(HOST|PORT\w*))$")


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[Problem]:
    prefix = f"{SETTING}_"
    known = [name.upper() for name, key in KEYS.items() if key.read is not None]
    for name in sorted(environment):
        rest = name.removeprefix(prefix)
        if rest == name or rest in known or _OF_KUBERNETES.match(rest):
            continue
        close = difflib.get_close_matches(rest, known, n=1)
        there_are = f"There are: {', '.join(prefix + it for it in known)}."
        hint = f"Did you mean {prefix}{close[0]}?" if close else there_are
        if rest.lower() in KEYS:
            hint = f"{SETTING}['{rest.lower()}'] can be set in the settings only."
        yield Problem("E002", f"The environment variable {name} means nothing.", hint)


def _given(
    name: str,
    key: Key,
    setting: Mapping[str, Any],
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> Iterator[tuple[str, Any]]:
    """Find the values of a key, and what to call each, the one that wins last."""
    if name == "workers" and (text := environment.get(_WEB_CONCURRENCY)):
        yield _WEB_CONCURRENCY, read_number(text)
    if name in setting:
        yield f"{SETTING}['{name}']", setting[name]
    variable = f"{SETTING}_{name.upper()}"
    if key.read is not None and (text := environment.get(variable)):
        if not (_OF_KUBERNETES.match(variable.removeprefix(f"{SETTING}_")) and is_url(text)):
            yield variable, key.read(text)
    if flags.get(key.attribute) is not None:
        yield key.flag_name, flags[key.attribute]


def import_configured(key: str, path: str, place: str | None = None) -> Callable[..., Any]:
    """Import what a dotted path in the setting names.

    Args:
        key: The key of the setting that holds the path, for the message; dots lead into a
            dictionary, as in ``health.checks``.
        path: For example ``"myproject.servicers.grpc_hook"``.
        place: What the message calls the place of the path. Default: the key of the setting.

    Raises:
        InvalidSetting: It can't be imported or called, ends the process, or its code would not run
            when it is called. Whatever else the module raises while it is imported is a fault of
            its code and propagates, with a note of where its path stands.
    """
    place = place or _place(key)
    try:
        found = _import(path)
    except ImportError as error:
        code, hint = "E013", "Give the dotted path of a module that exists and of a name in it."
        if (culprit := _culprit(path, error)) is not None:
            code, hint = "W004", f"Mend the import in {culprit}."
        if culprit is not None and _GENERATED.search(culprit):
            hint = (
                f"{culprit} is generated, and imports by the path that its .proto had for protoc: "
                "generate it from the project's folder, as by python -m grpc_tools.protoc -I. "
                "--python_out=. --grpc_python_out=. protos/your.proto"
            )
        elif str(error.name).endswith(("_pb2", "_pb2_grpc")):
            hint = (
                f"{hint} If its code was never generated: python -m grpc_tools.protoc -I. "
                "--python_out=. --grpc_python_out=. your.proto"
            )
        raise InvalidSetting(
            Problem(code, f"{place}: '{path}' can't be imported: {str(error).rstrip('.')}.", hint)
        ) from error
    except SystemExit as leaving:
        who = f"{place}: '{path}' can't be imported: its module"
        raise _exited("W004", who, leaving) from leaving
    except Exception as error:
        error.add_note(f"{place}: '{path}' can't be imported.")
        raise
    if not callable(found):
        raise InvalidSetting(
            Problem(
                "E014",
                f"{place}: '{path}' is of type {type(found).__name__}, which can't be called.",
                "Give the dotted path of a function or a class"
                + (" in it." if inspect.ismodule(found) else "."),
            )
        )
    if (kind := _deferred_kind(found)) is not None:
        raise InvalidSetting(
            Problem(
                "E014",
                f"{place}: '{path}' is {kind} function: called here, nothing of it would run.",
                "Write it as an ordinary function; asgiref.sync.async_to_sync runs async code in "
                "one.",
            )
        )
    if not takes(found, *_ARGUMENTS[key]):
        message = f"{place}: '{path}' can't be called as it has to be."
        raise InvalidSetting(Problem("E014", message, _HINTS[key]))
    result: Callable[..., Any] = found
    return result


# The file and line of what protoc has written.
_GENERATED = re.compile(r"_pb2(_grpc)?\.py:\d+$")


def _import(path: str) -> Any:
    """Do what Django's `import_string` does, but for an AttributeError of the module's own code.

    That would be told as a name that the module lacks.
    """
    name, _, attribute = path.rpartition(".")
    if not name:
        raise ImportError("it names no module")
    module = importlib.import_module(name)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        if hasattr(module, "__path__") and importlib.util.find_spec(path) is not None:
            return importlib.import_module(path)  # which is told for what it is
        raise ImportError(f"the module '{name}' has no '{attribute}'") from error


def _culprit(path: str, error: ImportError) -> str | None:
    """Return the line of the project's code that can't import something, as `file:line`.

    None where it is the path itself that leads nowhere.
    """
    module = path.rpartition(".")[0]
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith("<frozen ") and frame.filename != __file__:
            # importlib.import_module, by which the first module is imported, is in a file.
            return None if "importlib" in frame.filename else f"{frame.filename}:{frame.lineno}"
    return None


def _deferred_kind(function: Any) -> str | None:
    """Say what a function is of which a call runs nothing."""
    if isinstance(function, type):
        return None
    for it in (function, function.__call__):
        if iscoroutinefunction(it):
            return "an async"
        if is_generator_function(it):
            return "a generator"
    return None


def is_generator_function(function: Any) -> bool:
    """Whether a call makes a generator, of either kind."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def call_configured(key: str, path: str, *arguments: Any, place: str | None = None) -> Any:
    """Call what a dotted path in the setting names.

    Args:
        key: As for `import_configured`.
        path: As for `import_configured`.
        arguments: What to call it with.
        place: As for `import_configured`.

    Returns:
        What it returns.

    Raises:
        InvalidSetting: As `import_configured`. Whatever else it raises propagates, with a note.
    """
    place = place or _place(key)
    function = import_configured(key, path, place)
    try:
        return function(*arguments)
    except SystemExit as leaving:
        raise _exited("E014", f"{place}: '{path}'", leaving) from leaving
    except Exception as error:
        error.add_note(f"{place}: '{path}' has raised this as it was called.")
        raise


# What is called with something, and what to give in place of a thing that does not take it.
_ARGUMENTS: dict[str, tuple[object, ...]] = {
    "servicers": (None,),
    "interceptors": (),
    "health.checks": (),
}
_HINTS = {
    "servicers": "Give a function that takes the server and adds servicers to it: def "
    "grpc_hook(server): add_MyServiceServicer_to_server(MyService(), server).",
    "interceptors": "Give a class with the method intercept_service that can be made without "
    "arguments, or the path of a function that makes one.",
    "health.checks": "Give a function without arguments.",
}


def takes(function: Any, *arguments: Any) -> bool:
    """Return whether a function can be called so, as far as it tells."""
    try:
        # What a decorator takes counts, and not what it has wrapped.
        inspect.signature(function, follow_wrapped=False).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # one of C, which tells nothing
        pass
    return True


def _place(key: str) -> str:
    return SETTING + "".join(f"['{it}']" for it in key.split("."))


def _exited(code: str, who: str, leaving: SystemExit) -> InvalidSetting:
    """Say who wanted to end the process, which would have ended without a word of why."""
    status = "" if leaving.code is None else repr(leaving.code)
    hint = "Raise an exception that says what is wrong."
    return InvalidSetting(Problem(code, f"{who} calls sys.exit({status}).", hint))
