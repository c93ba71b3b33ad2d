"""Whether servicers' methods can be called, and the paths of the key ``methods`` are theirs."""

import difflib
import logging
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_grpc import conf
from django_grpc.engine.handlers import behavior_of, lacks_instance
from django_grpc.engine.health import SERVICE_NAME

# By the name that django-grpc gave it, by which projects configure it.
logger = logging.getLogger("django_grpc.utils")

# The engine's, or added later.
_OWN_METHODS = (
    f"/{SERVICE_NAME}/Check",
    f"/{SERVICE_NAME}/Watch",
    f"/{SERVICE_NAME}/List",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


def check_methods(server: Any, config: conf.ServerConfig) -> None:
    """Refuse limits of methods that there are not.

    Generic handlers that have to be asked may know more of them than the server. So may
    interceptors, but hardly one does: there it is a warning.

    Args:
        server: As `build_server` has made it, with all its servicers.
        config: What it was made of.

    Raises:
        ImproperlyConfigured: A path of ``methods`` is no servicer's.
    """
    if not config.servicers or not server.knows_all_methods:
        return
    paths = [*server.method_handlers(), *_OWN_METHODS]
    services = {path.rpartition("/")[0] + "/*" for path in paths}
    for pattern in config.methods:
        if pattern != "*" and pattern not in paths and pattern not in services:
            like = services if pattern.endswith("/*") else paths
            close = difflib.get_close_matches(pattern, like, n=1)
            problem = f"{conf.SETTING}['methods']: no servicer has '{pattern}'." + (
                f" Did you mean '{close[0]}'?" if close else ""
            )
            if not config.interceptors:
                raise ImproperlyConfigured(problem)
            logger.warning("%s Its limits count if an interceptor continues with it.", problem)


def check_behaviors(server: Any) -> None:
    """Refuse what is no method, and warn of methods of which each call would fail.

    Args:
        server: As `build_server` has made it, with all its servicers.

    Raises:
        ImproperlyConfigured: A servicer has something that can't be called in a method's place.
    """
    for path, handler in server.method_handlers().items():
        behavior = behavior_of(handler)
        if behavior is None or lacks_instance(handler):
            continue  # the server says so when it starts
        if not callable(behavior):
            raise ImproperlyConfigured(
                f"{path}: its servicer has an object of type {type(behavior).__name__!r} in the "
                "place of the method. Write a method that takes the request and the context."
            )
        taken = ["request", "context"]
        if getattr(behavior, "experimental_non_blocking", False) is True:
            taken.append("send_response_callback")
        if not conf.takes(behavior, *taken):
            logger.warning(
                "Each call of %s will fail: its method can't be called with %d arguments, which "
                "are %s.",
                path,
                len(taken),
                ", ".join(taken),
            )
        elif not handler.response_streaming and conf.is_generator_function(behavior):
            logger.warning(
                "Each call of %s will fail: it has one answer, and its method is a generator. "
                "Write 'return' in place of 'yield'.",
                path,
            )
