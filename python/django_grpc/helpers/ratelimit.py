"""Limits on how often a method is called, counted in Django's cache."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import cache, wraps
from typing import Any, TypeVar

import grpc
from django.conf import settings
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.base import BaseCache
from django.core.exceptions import ImproperlyConfigured
from google.protobuf.message import Message

from django_grpc.logs import GuardedLogger

from .retry_info import set_retry_info

logger = GuardedLogger("django_grpc")

#: What tells clients apart: `"request:path.to.field"`, `"metadata:name"`, or a function of
#: request and context that returns text. On an async method the function may be async.
Key = str | Callable[[Any, Any], Any]

Method = TypeVar("Method", bound=Callable[..., Any])

# A counter outlives its window by this many seconds, so that clocks of several machines and the
# cache need not agree to the second.
_SLACK = 3
_METADATA_NAME = re.compile(r"[0-9a-zA-Z_.-]+")


def get_current_time_window(time_period: int) -> int:
    """Return the end of the current window: the next multiple of the period, in epoch seconds."""
    ts = int(time.time())
    return ts + -ts % time_period


def create_cache_key(
    group: str, values: Sequence[str], time_window: int, time_period: int | None = None
) -> str:
    """Return the cache key of one counter.

    The parts are kept apart, so that group "ab" never counts for group "a" with value "b". The
    period is one of them: windows of several lengths end at the same time.
    """
    parts = json.dumps([group, list(values), time_window, time_period])
    return hashlib.sha256(parts.encode()).hexdigest()


def get_keys_values(request: Any, context: Any, keys: Sequence[Key]) -> list[str]:
    """Return what each key says about this call, as text.

    A request field or metadata that is absent gives "". Of metadata that is repeated the last
    value counts.

    Raises:
        ImproperlyConfigured: A key has no known prefix, asks for a field of the request where
            the method takes a stream of them, or for a field of text or a number.
    """
    values = []
    for key in keys:
        if callable(key):
            values.append(_checked_text(key, key(request, context)))
        elif key.startswith("request:"):
            values.append(_request_value(request, key))
        elif key.startswith("metadata:"):
            name = key.removeprefix("metadata:").lower()
            values.append(_text(dict(context.invocation_metadata() or ()).get(name, "") or ""))
        else:
            raise _unknown_key(key)
    return values


def _request_value(request: Any, key: str) -> str:
    if hasattr(request, "__next__") or hasattr(request, "__anext__"):
        raise ImproperlyConfigured(
            f"ratelimit key {key!r} reads a field of the request, and this method takes a stream "
            'of requests; use "metadata:" or a function of the context'
        )
    value = request
    for field in key.removeprefix("request:").split("."):
        if isinstance(value, str | bytes | int | float):
            raise ImproperlyConfigured(
                f"ratelimit key {key!r} asks for {field!r} of a {type(value).__name__}, which has "
                "no fields"
            )
        if not hasattr(value, field):
            if isinstance(value, Message):
                _warn_of_missing(key, field, value.DESCRIPTOR.full_name)
            return ""
        value = getattr(value, field)
    return _text(value)


@cache
def _warn_of_missing(key: str, field: str, message: str) -> None:
    """Say once of a message that it has no such field; one key may serve several."""
    logger.warning(
        "The ratelimit key %r asks for %r, which %s has not: all of its clients share one limit.",
        key,
        field,
        message,
    )


def _checked_text(key: Callable[..., Any], value: Any) -> str:
    """Return as text what a function says.

    Raises:
        ImproperlyConfigured: That would be an object's address, which says nothing of the client.
    """
    kind: Any = type(value)
    is_anonymous = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    is_deferred = inspect.isawaitable(value) or hasattr(value, "__next__")
    if not (is_anonymous or is_deferred or callable(value)):
        return _text(value)
    if inspect.iscoroutine(value):
        value.close()  # nobody awaits it
    why = "; only an async method's key may be async" if inspect.isawaitable(value) else ""
    raise ImproperlyConfigured(
        f"ratelimit key {getattr(key, '__qualname__', key)} returns an object of type "
        f"{type(value).__name__}, and has to return text{why}"
    )


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _unknown_key(key: Any) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f'ratelimit key {key!r} is neither "request:field" nor "metadata:name" nor a function'
    )


def _check_key(key: Any) -> None:
    """Refuse what tells no client from another, whatever the request."""
    prefix, _, name = key.partition(":") if isinstance(key, str) else ("", "", "")
    if prefix == "request":
        if not all(map(str.isidentifier, name.split("."))):
            raise ImproperlyConfigured(
                f'ratelimit key {key!r} names no field of a request: write "request:field" or '
                '"request:path.to.field"'
            )
    elif prefix == "metadata":
        if not _METADATA_NAME.fullmatch(name):
            raise ImproperlyConfigured(
                f'ratelimit key {key!r} names no metadata: write "metadata:name", of letters, '
                'digits and "_", "-", "."'
            )
    else:
        raise _unknown_key(key)


def _cache() -> BaseCache:
    name = getattr(settings, "RATELIMIT_USE_CACHE", "default")
    try:
        return caches[name]
    except (InvalidCacheBackendError, TypeError) as error:  # TypeError: it is no text
        raise ImproperlyConfigured(
            f"RATELIMIT_USE_CACHE is {name!r}, and settings.CACHES has no such cache"
        ) from error


def save_call(cache_key: str, time_period: int) -> int:
    """Count a call; return how many there are with it.

    Where the cache's `incr` is atomic (Redis, Memcached, local memory) so is this, whatever the
    number of processes and machines. A cache that can't be reached, where its backend says
    nothing about that (Memcached), limits nobody.
    """
    cache = _cache()
    timeout = time_period + _SLACK
    # Twice: what was there when we wanted to add may expire before we can increase it.
    for _ in range(2):
        if cache.add(cache_key, 1, timeout):
            return 1
        try:
            count = cache.incr(cache_key)
        except ValueError:
            continue
        if _resets_timeout(cache):
            cache.touch(cache_key, timeout)
        return count
    return 1


async def asave_call(cache_key: str, time_period: int) -> int:
    """Do what `save_call` does, without blocking the event loop."""
    cache = _cache()
    timeout = time_period + _SLACK
    for _ in range(2):
        if await cache.aadd(cache_key, 1, timeout):
            return 1
        try:
            count = await cache.aincr(cache_key)
        except ValueError:
            continue
        if _resets_timeout(cache):
            await cache.atouch(cache_key, timeout)
        return count
    return 1


def _resets_timeout(cache: BaseCache) -> bool:
    """Tell whether `incr` is the base class's, which stores anew with the default timeout."""
    return type(cache).incr is BaseCache.incr


def record_call(
    rpc: Callable[..., Any],
    request: Any,
    context: Any,
    time_period: int,
    group: str | None = None,
    keys: Sequence[Key] | None = None,
) -> tuple[int, int]:
    """Count a call.

    Args:
        rpc: The servicer's method.
        request: The call's request message.
        context: The call's context.
        time_period: Seconds that are counted together.
        group: What counts together: methods with the same group, period and keys' values. The
            default is the method's qualified name, `Class.Method`.
        keys: What tells clients apart. The default is nothing.

    Returns:
        The calls in this period so far, and the seconds until its end.

    Raises:
        ImproperlyConfigured: The period is not above 0, or a key is unknown.
    """
    time_window = _time_window(time_period)
    values = get_keys_values(request, context, keys or ())
    cache_key = create_cache_key(_group(rpc, group), values, time_window, time_period)
    return save_call(cache_key, time_period), time_window - int(time.time())


async def arecord_call(
    rpc: Callable[..., Any],
    request: Any,
    context: Any,
    time_period: int,
    group: str | None = None,
    keys: Sequence[Key] | None = None,
) -> tuple[int, int]:
    """Do what `record_call` does, without blocking the event loop; keys may be async functions."""
    time_window = _time_window(time_period)
    values = []
    for key in keys or ():
        if callable(key):
            value = key(request, context)
            value = await value if inspect.isawaitable(value) else value
            values.append(_checked_text(key, value))
        else:
            values += get_keys_values(request, context, [key])
    cache_key = create_cache_key(_group(rpc, group), values, time_window, time_period)
    return await asave_call(cache_key, time_period), time_window - int(time.time())


def _time_window(time_period: int) -> int:
    if time_period <= 0:
        raise ImproperlyConfigured("time_period must be greater than 0")
    return get_current_time_window(time_period)


def _check_number(name: str, number: Any, *, least: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ImproperlyConfigured(
            f"ratelimit's {name} must be a whole number, {least} or more, not {number!r}"
        )


def _group(rpc: Callable[..., Any], group: str | None) -> str:
    return rpc.__qualname__ if group is None else group


def ratelimit(
    max_calls: int,
    time_period: int,
    group: str | None = None,
    keys: Sequence[Key] | None = None,
) -> Callable[[Method], Method]:
    """Let a method be called no more often than `max_calls` in each `time_period`.

    Further calls are aborted with RESOURCE_EXHAUSTED; the status carries a
    `google.rpc.RetryInfo` with the time until the next period. A stream counts as one call, at
    its start. The method may be sync or async, a function or a generator.

    Args:
        max_calls: Calls that are let through in a period.
        time_period: Seconds; periods begin at multiples of it since the epoch.
        group: See `record_call`.
        keys: See `record_call`.

    Raises:
        ImproperlyConfigured: A key is unknown, or can't be the name of a field or of metadata; a
            number is none, or too small; or the group is no text. In a call: a function of `keys`
            returns something else than text, a number or None.
    """
    _check_number("max_calls", max_calls, least=0)
    _check_number("time_period", time_period, least=1)
    if isinstance(keys, str):
        raise ImproperlyConfigured(f"ratelimit's keys must be a list, not {keys!r}: [{keys!r}]")
    if group is not None and not isinstance(group, str):
        raise ImproperlyConfigured(f"ratelimit's group must be text, not {group!r}")
    for key in keys or ():
        if not callable(key):
            _check_key(key)

    def exceeded(time_left: int) -> str:
        return (
            f"Reached limit of {max_calls} calls per {time_period} seconds."
            f" Resource will be available in {time_left} seconds."
        )

    def decorator(fn: Method) -> Method:
        if isinstance(fn, type) or not callable(fn):
            raise ImproperlyConfigured(f"ratelimit goes before a servicer's method: {fn!r} is none")

        def check(request: Any, context: Any) -> None:
            calls, time_left = record_call(fn, request, context, time_period, group, keys)
            if calls > max_calls:
                _prepare(context, exceeded(time_left), time_left)
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, exceeded(time_left))

        async def acheck(request: Any, context: Any) -> None:
            calls, time_left = await arecord_call(fn, request, context, time_period, group, keys)
            if calls > max_calls:
                _prepare(context, exceeded(time_left), time_left)
                aborting = context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, exceeded(time_left))
                if inspect.isawaitable(aborting):
                    await aborting

        wrapped: Any
        if inspect.isasyncgenfunction(fn):

            @wraps(fn)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                await acheck(*_request_and_context(args, kwargs))
                async with aclosing(fn(*args, **kwargs)) as responses:
                    async for response in responses:
                        yield response

        elif inspect.iscoroutinefunction(fn):

            @wraps(fn)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                await acheck(*_request_and_context(args, kwargs))
                return await fn(*args, **kwargs)

        else:

            @wraps(fn)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                check(*_request_and_context(args, kwargs))
                return fn(*args, **kwargs)

        result: Method = wrapped
        return result

    return decorator


def _prepare(context: Any, details: str, time_left: int) -> None:
    # The window is over when its last second is.
    set_retry_info(context, grpc.StatusCode.RESOURCE_EXHAUSTED, details, time_left + 1)


def _request_and_context(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the last two arguments: a method has its servicer before them, a function has not."""
    rest = list(args)
    context = kwargs["context"] if "context" in kwargs else rest.pop()
    request = kwargs["request"] if "request" in kwargs else rest.pop()
    return request, context
