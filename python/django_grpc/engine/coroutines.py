"""Calls on an asyncio loop: what runs a servicer's coroutine or generator, inside one task each.

The engine makes a context and a coroutine of `run_unary`, `run_writer`, `run_generator` or
`run_resolved` for each call, in batches, and has them run as tasks. The context does all that need
not wait; here is the rest, with the semantics of grpc.aio.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import inspect
import threading
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc
from asgiref.sync import iscoroutinefunction

from django_grpc.context_variables import carry, changes
from django_grpc.logs import GuardedLogger, class_name_of, text_of
from django_grpc.shortage import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django_grpc._engine import AsyncServicerContext

logger = GuardedLogger("django_grpc")

#: What the context has when there is no request yet.
PENDING = object()

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]


# Which function runs where


class Colour(enum.IntEnum):
    """What kind of function a method is; the engine knows the numbers."""

    PLAIN = 0
    COROUTINE = 1
    ASYNC_GENERATOR = 2


def colour(behavior: Any) -> Colour:
    """Say what kind of function a method is.

    Partial objects, and objects whose `__call__` is one of these, count as what they call.
    """
    while isinstance(behavior, functools.partial):
        behavior = behavior.func
    for candidate in (behavior, getattr(behavior, "__call__", None)):  # noqa: B004
        # A mock's is a mock, of which `inspect` and `isinstance` believe everything.
        if type(getattr(candidate, "__code__", None)) not in (types.CodeType, types.NoneType):
            continue
        if iscoroutinefunction(candidate):
            return Colour.COROUTINE
        if inspect.isasyncgenfunction(candidate):
            return Colour.ASYNC_GENERATOR
    return Colour.PLAIN


# A call, from its request to its status


async def run_unary(context: AsyncServicerContext, behavior: Callable[..., Any]) -> None:
    """Run a method that returns its only response."""
    loop = asyncio.get_running_loop()
    context._begin()
    try:
        request = context._request()
        if request is PENDING:
            request = await _first_request(context)
        response = await behavior(request, context)
        try:
            context._answer(response)
        except TypeError as error:
            error.add_note(_what_it_gave(response))
            raise
    except BaseException as error:
        _failed(context, error, loop)
    finally:
        _done(context)


async def run_writer(context: AsyncServicerContext, behavior: Callable[..., Any]) -> None:
    """Run a method that sends its responses by `context.write`."""
    loop = asyncio.get_running_loop()
    context._begin()
    try:
        request = context._request()
        if request is PENDING:
            request = await _first_request(context)
        result = await behavior(request, context)
        if result is not None:
            # grpc.aio ends such a call as if all were well, without the messages.
            raise TypeError(
                "a streaming method has to yield, or to send by context.write(): this one has "
                f"returned an object of type {type(result).__name__!r}"
            )
        context._finish()
    except BaseException as error:
        _failed(context, error, loop)
    finally:
        _done(context)


async def run_generator(context: AsyncServicerContext, behavior: Callable[..., Any]) -> None:
    """Run a method that yields its responses."""
    loop = asyncio.get_running_loop()
    context._begin()
    try:
        request = context._request()
        if request is PENDING:
            request = await _first_request(context)
        responses = behavior(request, context)
        try:
            async for response in responses:
                try:
                    has_room = context._send(response)
                except TypeError as error:
                    error.add_note(_what_it_gave(response))
                    raise
                if not has_room:
                    await _room(context)
        finally:
            # Here, and not whenever the garbage collector comes by: its `finally` blocks belong to
            # the call.
            close = getattr(responses, "aclose", None)
            if close is not None:
                await close()
        context._finish()
    except BaseException as error:
        _failed(context, error, loop)
    finally:
        _done(context)


def _what_it_gave(response: object) -> str:
    hint = " Is a 'return' missing?" if response is None else ""
    return f"The servicer method gave an object of type {type(response).__name__!r}.{hint}"


async def run_resolved(context: AsyncServicerContext) -> None:
    """Run a call whose handler the server's resolver gives, which is a coroutine function."""
    loop = asyncio.get_running_loop()
    context._begin()
    before = contextvars.copy_context()
    try:
        bound = None
        resolver = context._resolver()
        if resolver is None:  # the server has stopped, while the loop was busy
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context._fail("The server has stopped")
        elif (handler := await resolver(context._path(), context.invocation_metadata())) is None:
            context.set_code(grpc.StatusCode.UNIMPLEMENTED)
            context.set_details("Method not found!")
            context._finish()
        else:
            if (variables := changes(before)) is not None:
                context._carry(variables)
            bound = context._bind(handler)
            if bound is None:  # it is a worker's now
                return
    except BaseException as error:
        try:
            _failed(context, error, loop)
        finally:
            _done(context)
        return
    if bound is None:
        _done(context)
    else:
        run, behavior = bound
        await run(context, behavior)


def _failed(
    context: AsyncServicerContext, error: BaseException, loop: asyncio.AbstractEventLoop
) -> None:
    """End a call whose servicer raised, as grpc.aio does; in the handler of that exception.

    The call has its status before anything is logged. Nothing is asked of the exception but its
    text and its class's, as all of it is the project's and may raise; so would `isinstance`.
    """
    kind = type(error)
    if issubclass(kind, grpc.aio.AbortError) and error is context._abort_error():
        return
    if issubclass(kind, asyncio.CancelledError):
        if context.is_active():  # by its own servicer
            context.set_code(grpc.StatusCode.CANCELLED)
            context._fail("The servicer was cancelled.")
        logger.debug("The call of %s was cancelled", context._path())
        return
    if issubclass(kind, NoThreadError):
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context._fail(text_of(error))
        return
    if issubclass(kind, GeneratorExit) and not loop.is_running():  # nobody runs it any more
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context._fail("The asyncio loop of the server has ended")
        # Here, on whatever thread the task is thrown away, the variables may be another call's.
        contextvars.Context().run(_done, context)
        return
    if issubclass(kind, grpc.aio.InternalError) and context.done():
        # By which the engine says that there is nothing to go on with.
        if context._is_cancelled():
            logger.warning(
                "The call of %s was cancelled, and its servicer went on: it should let "
                "asyncio.CancelledError pass.",
                context._path(),
            )
        return
    context._fail(_details(error))
    logger.exception(
        "Unexpected [%s] raised by servicer method [%s]", class_name_of(error), context._path()
    )
    if issubclass(kind, KeyboardInterrupt | SystemExit) and _is_main_thread():
        # As grpc.aio: it ends the process. On another thread it would end nothing but the loop.
        raise error


def _details(error: BaseException) -> str:
    try:
        details = f"Unexpected {type(error)}: {error}"
        return details.encode(errors="backslashreplace").decode()  # there may be lone surrogates
    except BaseException:
        return "Unexpected unprintable exception"


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _done(context: AsyncServicerContext) -> None:
    callbacks = context._done()
    for callback in callbacks or ():
        try:
            callback(context)
        except BaseException:  # sys.exit() must not end the loop, and the calls on it
            logger.exception("Error in callback for method [%s]", context._path())


def cancel(context: AsyncServicerContext, task: asyncio.Task[None]) -> None:
    """Tell a call's task that the call has ended."""
    # A task that is cancelled before its first step never runs, and so tells nobody of its end.
    task.add_done_callback(lambda _: _done(context))
    task.cancel()


# Waiting


def wake(future: asyncio.Future[None]) -> None:
    """Set a future that nobody may be waiting for any more."""
    if not future.done():
        future.set_result(None)


async def _first_request(context: AsyncServicerContext) -> Any:
    request = PENDING
    while request is PENDING:
        await _news(context)
        request = context._request()
    return request


async def _news(context: AsyncServicerContext) -> None:
    """Wait until there is a request, or no more of them."""
    future = asyncio.get_running_loop().create_future()
    context._set_reader(future)
    await _wait(context, future)


async def _room(context: AsyncServicerContext) -> None:
    """Wait until a response is welcome, and give the loop to others meanwhile."""
    future = asyncio.get_running_loop().create_future()
    context._set_writer(future)
    await _wait(context, future)


async def _wait(context: AsyncServicerContext, future: asyncio.Future[None]) -> None:
    try:
        await future
    except asyncio.CancelledError:  # who polls with a timeout would leave a future each time
        context._forget(future)
        raise


async def next_request(context: AsyncServicerContext) -> Any:
    """Return the next item of the iteration over the requests."""
    request = await read(context)
    if request is _EOF:
        raise StopAsyncIteration
    return request


# The coroutine functions of the context


async def read(context: AsyncServicerContext) -> Any:
    """Be `ServicerContext.read`."""
    while (request := context._receive()) is PENDING:
        await _news(context)
    return request


async def write(context: AsyncServicerContext, message: Any) -> None:
    """Be `ServicerContext.write`."""
    if not context._send(message):
        await _room(context)


async def send_initial_metadata(context: AsyncServicerContext, initial_metadata: Any) -> None:
    """Be `ServicerContext.send_initial_metadata`."""
    context._send_initial_metadata(initial_metadata)


async def abort(
    context: AsyncServicerContext,
    code: grpc.StatusCode,
    details: str = "",
    trailing_metadata: Any = (),
) -> None:
    """Be `ServicerContext.abort`."""
    trailing_metadata = as_trailing_metadata(() if trailing_metadata is None else trailing_metadata)
    error = grpc.aio.AbortError("Locally aborted.")
    try:
        context._abort(error, code, details, trailing_metadata)
        raise error
    finally:
        del error  # a cycle, which would keep all frames of the call until the next collection


def abort_with_status(context: AsyncServicerContext, status: Any) -> Awaitable[None]:
    """Be `ServicerContext.abort_with_status`."""
    return abort(context, status.code, status.details, status.trailing_metadata)


def as_trailing_metadata(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Return trailing metadata as grpc.aio keeps it.

    Raises:
        TypeError: It is none; a dictionary is none either, as grpc.aio has it.
    """
    if isinstance(metadata, Iterable) and not isinstance(metadata, dict):
        items = tuple(metadata)
        if all(isinstance(item, tuple) for item in items):
            return items
    raise TypeError(
        "Invalid trailing metadata type, expected Tuple[Tuple[str, Union[str, bytes]]...]: "
        f"{metadata}"
    )


BINDINGS: dict[str, Any] = {
    "colour": colour,
    "unary": run_unary,
    "writer": run_writer,
    "generator": run_generator,
    "resolved": run_resolved,
    "changes": changes,
    "carry": carry,
    "cancel": cancel,
    "wake": wake,
    "next_request": next_request,
    "read": read,
    "write": write,
    "abort": abort,
    "abort_with_status": abort_with_status,
    "send_initial_metadata": send_initial_metadata,
    "trailing_metadata": as_trailing_metadata,
    "eof": _EOF,
    "pending": PENDING,
    "usage_error": grpc.aio.UsageError,
    "internal_error": grpc.aio.InternalError,
}
