"""What is put around methods: interceptors, and the instruments that settings ask for."""

import inspect
from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_grpc import conf, queries, tracing
from django_grpc.wrapping.shapes import Instrument


def load_interceptors(
    strings: Iterable[Any] | None, place: str = f"{conf.SETTING}['interceptors']"
) -> list[Any]:
    """Make the interceptors that dotted paths name, in order.

    Args:
        strings: Dotted paths of classes, called without arguments; what is not a string is taken
            for an interceptor and passed on.
        place: What the messages call the place of the paths.

    Raises:
        ImproperlyConfigured: A path can't be imported, or something is no interceptor.
    """
    loaded = []
    for it in strings or ():
        who, made = repr(it), it
        if isinstance(it, str):
            who = f"{place}: '{it}'"
            named = conf.import_configured("interceptors", it, place)
            if inspect.isabstract(named):
                missing = ", ".join(sorted(getattr(named, "__abstractmethods__", ())))
                raise ImproperlyConfigured(f"{who} is an abstract class: it has no {missing}.")
            made = conf.call_configured("interceptors", it, place=place)
        if not hasattr(made, "intercept_service"):
            raise ImproperlyConfigured(
                f"{who} is no grpc.ServerInterceptor: it has no method 'intercept_service'."
            )
        if not conf.takes(made.intercept_service, None, None):
            raise ImproperlyConfigured(
                f"{who}: its intercept_service can't be called as it has to be: "
                "def intercept_service(self, continuation, handler_call_details)."
            )
        loaded.append(made)
    return loaded


def load_instruments(config: conf.ServerConfig, interceptors: Iterable[Any]) -> list[Instrument]:
    """Make what the settings ask to be put around methods, the outermost last.

    Args:
        config: The settings.
        interceptors: Those of the server.

    Raises:
        ImproperlyConfigured: Something is asked for that is not installed.
    """
    instruments: list[Instrument] = []
    if config.access_log is not None and config.access_log.sql:
        queries.watch_connections()
        instruments.append(queries.count_queries)
    if (spans := tracing.load(config, interceptors)) is not None:
        instruments.append(spans)
    return instruments
