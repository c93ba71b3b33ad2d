"""The Python objects that the native engine needs, given to it once, at import."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grpc
import grpc.aio

from django_grpc import _engine
from django_grpc.engine import coroutines
from django_grpc.logs import GuardedLogger, exc_info_of

logger = GuardedLogger("django_grpc")


class AbortError(Exception):
    """What `ServicerContext.abort` raises to leave the servicer.

    grpcio raises a bare `Exception` there, so code that catches that works as before.
    """


class Metadatum(NamedTuple):
    """One item of metadata; `value` is `bytes` where `key` ends in `-bin`."""

    key: str
    value: str | bytes


def _log_exception(message: str, exception: BaseException) -> None:
    logger.error(message, exc_info=exc_info_of(exception))


def _log_error(message: str) -> None:
    logger.error(message)


def _end_child() -> None:
    """End a process that a servicer has forked, when it has done what it had to."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


_engine.configure(
    {
        "status_codes": {code: code.value[0] for code in grpc.StatusCode},
        "unknown_code": grpc.StatusCode.UNKNOWN,
        "rpc_error": grpc.RpcError,
        "abort_error": AbortError,
        "metadatum": Metadatum,
        "copy_context": contextvars.copy_context,
        "log_exception": _log_exception,
        "log_error": _log_error,
        "end_child": _end_child,
        "thread_pool": ThreadPoolExecutor,
        "coroutines": coroutines.BINDINGS,
    }
)

# isinstance(context, grpc.ServicerContext) holds, although a C type cannot inherit from an ABC.
grpc.ServicerContext.register(_engine.ServicerContext)  # type: ignore[attr-defined]
grpc.aio.ServicerContext.register(_engine.AsyncServicerContext)  # type: ignore[attr-defined]
