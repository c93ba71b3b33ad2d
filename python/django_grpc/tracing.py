"""Whether calls are traced, and by whom: the setting ``opentelemetry``."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from django_grpc import conf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django_grpc.wrapping.shapes import Instrument

logger = logging.getLogger(__name__)

_SDK = "opentelemetry.sdk"
_INSTRUMENTATION = "opentelemetry.instrumentation.grpc"


def load(config: conf.ServerConfig, interceptors: Iterable[Any] = ()) -> Instrument | None:
    """Return what puts spans around methods; None where calls get none.

    Args:
        config: For the setting.
        interceptors: Those of the server. With one of OpenTelemetry's among them, spans are its
            business, unless the setting asks for ours.

    Raises:
        InvalidSetting: The setting asks for spans, and OpenTelemetry is not installed.
    """
    if config.opentelemetry is False:
        return None
    if (problem := find_problem(config)) is not None:
        raise conf.InvalidSetting(problem)
    if not _is_installed():
        return None
    if any(map(_makes_spans, interceptors)):
        if config.opentelemetry is None:
            logger.info("Spans are left to the interceptor of %s.", _INSTRUMENTATION)
            return None
        logger.warning(
            "%s['opentelemetry'] is True and the interceptors have one of %s: every call gets two "
            "spans. Take the interceptor out of the list, or the key.",
            conf.SETTING,
            _INSTRUMENTATION,
        )
    from django_grpc.spans import CallSpans

    return CallSpans()


def find_problem(config: conf.ServerConfig) -> conf.Problem | None:
    """Look whether the setting asks for what is not installed."""
    if config.opentelemetry is not True or _is_installed():
        return None
    return conf.Problem(
        "E027",
        f"{conf.SETTING}['opentelemetry'] is True, and the OpenTelemetry SDK is not installed.",
        "Install the package opentelemetry-sdk, or leave the key out.",
    )


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(_SDK) is not None
    except ModuleNotFoundError:  # opentelemetry itself
        return False


def _makes_spans(interceptor: Any) -> bool:
    return any(
        f"{it.__module__}.".startswith(f"{_INSTRUMENTATION}.") for it in type(interceptor).__mro__
    )
