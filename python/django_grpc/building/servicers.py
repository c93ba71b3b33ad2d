"""The hooks of the key ``servicers``, and what tells clients of their methods."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_grpc import conf
from django_grpc.engine.health import SERVICE_NAME
from django_grpc.wrapping.shapes import Instrument
from django_grpc.wrapping.wrapper import SignalWrapper

# By the name that django-grpc gave it, by which projects configure it.
logger = logging.getLogger("django_grpc.utils")


def add_servicers(
    server: Any, servicers_list: Sequence[str], instruments: Sequence[Instrument] = ()
) -> None:
    """Call the hooks that register servicers, with a server that adds the signals.

    Args:
        server: A server that hasn't started.
        servicers_list: Dotted paths of functions that take the server.
        instruments: What is put around the methods, beside the signals.

    Raises:
        ImproperlyConfigured: A path can't be imported, or names no ordinary function; no hook
            registers anything.
    """
    if not servicers_list:
        logger.warning(
            "%s names no servicers: the server will answer no call. Did you forget its "
            "'servicers' list?",
            conf.SETTING,
        )
    wrapper = SignalWrapper(server, instruments)
    idle: list[str] = []
    for path in servicers_list:
        logger.debug("Adding the servicers of %s", path)
        before = wrapper.registrations
        with wrapper.in_hook(f"{conf.SETTING}['servicers']: '{path}'"):
            result = conf.call_configured("servicers", path, wrapper)
        if inspect.iscoroutine(result) or inspect.isgenerator(result):
            result.close()
            raise ImproperlyConfigured(
                f"{conf.SETTING}['servicers']: '{path}' is an async function or a generator, which "
                "nobody runs: make it an ordinary function."
            )
        if wrapper.registrations == before:
            idle.append(path)
    # One of several may have its reasons; where it is all of them, nothing would be served.
    for path in idle:
        problem = (
            f"{conf.SETTING}['servicers']: '{path}' adds no servicer to the server that it is given"
        )
        if len(idle) == len(servicers_list):
            raise ImproperlyConfigured(
                f"{problem}: call the generated add_MyServiceServicer_to_server(MyService(), "
                "server) in it."
            )
        logger.warning("%s.", problem)


def enable_reflection(server: Any) -> None:
    """Let clients ask a server for its services, through the reflection services v1 and v1alpha.

    Call it when all servicers have been added: those that come later are not listed.

    Args:
        server: A server that hasn't started.

    Raises:
        ImproperlyConfigured: The package grpcio-reflection is missing.
    """
    from django_grpc import reflection

    services = {path.split("/")[1] for path in server.method_handlers()}
    if server.health.is_served:
        services.add(SERVICE_NAME)
    reflection.register(server, services)
