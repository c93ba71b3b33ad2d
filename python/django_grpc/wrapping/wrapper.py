"""Servicers' methods, with the signals of a call's life sent around them."""

import contextlib
import functools
import logging
import re
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from django.core.exceptions import ImproperlyConfigured

from django_grpc.engine import AbortError
from django_grpc.engine.handlers import WRAPPED_BEHAVIOR
from django_grpc.engine.types import (
    AsyncServicerContext,
    GenericHandler,
    MethodHandler,
    ServiceHandler,
)
from django_grpc.hygiene import CALL_HYGIENE, close_old_connections
from django_grpc.signals import (
    grpc_got_request_exception,
    grpc_request_finished,
    grpc_request_started,
)
from django_grpc.wrapping.shapes import Behavior, Instrument, Shape, shape_of

logger = logging.getLogger("django_grpc")

# A handler that is made anew for every call (a proxy's, say) is wrapped anew; the cache that spares
# all the others must not grow with it.
_WRAPPED_HANDLERS = 1024

# What generated code calls the function that adds a servicer.
_ADDER = re.compile(r"add_\w+_to_server")

# What starts and ends a server.
_OF_THE_MAKER = frozenset({"start", "stop", "wait_for_termination"})

# What gives it an address.
_BINDING = frozenset({"add_insecure_port", "add_secure_port"})

_DictionaryHandler = type(grpc.method_handlers_generic_handler("", {}))


class SignalWrapper:
    """What a servicer hook gets as its ``server``: handlers registered through it send signals.

    It has the interface of `grpc.Server`: the two registering methods wrap what they are given,
    everything else is the server's own. Whatever can be decided once is decided at registration,
    on the thread that registers.

    Attributes:
        registrations: How often handlers have been registered, or may have been behind its back.
    """

    # The fields of grpc.RpcMethodHandler that can hold the method.
    METHOD_PROPERTIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

    def __init__(self, server: Any, instruments: Sequence[Instrument] = ()) -> None:
        """Wrap a server.

        Args:
            server: The server.
            instruments: What else is put around each method: the signals are sent inside of it. The
                last one is the outermost.
        """
        self._server = server
        self._hook: str | None = None
        self._hook_thread = 0
        self.registrations = 0
        self._services: set[str] = set()
        # Another server of gRPC's has nothing of the kind.
        if hasattr(server, "surround_calls"):
            server.surround_calls(CALL_HYGIENE)
        self._instruments = tuple(instruments)
        # Generated code registers one handler in both ways: it is wrapped once.
        self._wrap = functools.lru_cache(maxsize=_WRAPPED_HANDLERS)(self._wrap_anew)

    @property
    def server(self) -> Any:
        """The wrapped server, a `grpc.Server` or an object with its methods.

        What is registered there sends no signals.
        """
        self.registrations += 1
        return self._server

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._server, name)
        if self._hook is None:
            return found
        if name in _OF_THE_MAKER:
            return functools.partial(self._call_for_maker, name, found)
        if name in _BINDING:
            return functools.partial(self._bind_for_hook, name, found)
        return found

    def _bind_for_hook(self, name: str, method: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        try:
            return method(*args, **kw)
        except RuntimeError as error:
            raise ImproperlyConfigured(
                f"{self._hook or 'A hook'} calls {name}() of the server that it is given: {error}. "
                "Leave addresses to the command; each worker process calls the hook."
            ) from error

    def _call_for_maker(self, name: str, method: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        # It may be called later, or on a thread of the hook's own.
        if self._hook is not None and threading.get_ident() == self._hook_thread:
            raise ImproperlyConfigured(
                f"{self._hook} calls {name}() of the server that it is given: leave that to "
                "whoever made it, and only add servicers."
            )
        return method(*args, **kw)

    @contextlib.contextmanager
    def in_hook(self, hook: str) -> Iterator[None]:
        """Refuse what a hook must not do, as an old ``serve()`` does: it would wait for ever.

        Args:
            hook: Who it is, for the message.

        Raises:
            ImproperlyConfigured: It does, or it gives generated code something else than a servicer
                and the server.
        """
        self._hook, self._hook_thread = hook, threading.get_ident()
        try:
            yield
        except AttributeError as error:
            if (adder := _adder_that_raised(error)) is not None:
                raise ImproperlyConfigured(
                    f"{hook}: {adder}() takes a servicer and then the server, and the "
                    f"{_describe(error.obj)} that it is given for one of them has no "
                    f"{error.name!r}."
                ) from error
            if error.obj is self._server:
                raise ImproperlyConfigured(
                    f"{hook} asks the server that it is given for {error.name!r}, which no server "
                    "has: give a function that takes the server and adds servicers to it."
                ) from error
            raise
        finally:
            self._hook = None

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[GenericHandler]) -> None:
        """Register generic handlers, with everything that they find wrapped."""
        self.registrations += 1
        self._server.add_generic_rpc_handlers(
            tuple(
                _wrap_generic_handler(handler, self._wrap_found) for handler in generic_rpc_handlers
            )
        )

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: dict[str, MethodHandler]
    ) -> None:
        """Register the handlers of one service, by the names of its methods."""
        self.registrations += 1
        if service_name in self._services:
            logger.warning(
                "The service %s is added twice: the servicer that is added last answers its calls.",
                service_name,
            )
        self._services.add(service_name)
        self._server.add_registered_method_handlers(
            service_name,
            {
                name: self._wrap_found(f"/{service_name}/{name}", handler)
                for name, handler in method_handlers.items()
            },
        )

    def _wrap_found(self, path: str, handler: MethodHandler) -> MethodHandler:
        if not self._instruments:
            path = ""  # nobody asks for it, and a proxy's handler may serve any
        try:
            return self._wrap(path, handler)
        except TypeError:  # a method that is an object without a hash
            return self._wrap_anew(path, handler)

    def _wrap_anew(self, path: str, handler: MethodHandler) -> MethodHandler:
        return wrap_method_handler(handler, path, self._instruments)


_Wrap = Callable[[str, MethodHandler], MethodHandler]


class _SignalGenericHandler(GenericHandler):
    """A user's generic handler whose finds are wrapped."""

    def __init__(self, inner: GenericHandler, wrap: _Wrap) -> None:
        self._inner = inner
        self._wrap = wrap

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        handler = self._inner.service(handler_call_details)
        return None if handler is None else self._wrap(handler_call_details.method, handler)


class _SignalServiceHandler(_SignalGenericHandler, ServiceHandler):
    """The same for one service, which the server may ask for its name."""

    def __init__(self, inner: ServiceHandler, wrap: _Wrap) -> None:
        super().__init__(inner, wrap)
        self._service_name = inner.service_name()

    def service_name(self) -> str:
        return self._service_name


def _wrap_generic_handler(handler: GenericHandler, wrap: _Wrap) -> GenericHandler:
    if isinstance(handler, grpc.ServiceRpcHandler):
        if type(handler) is _DictionaryHandler and hasattr(handler, "_method_handlers"):
            # What generated code registers. It stays one, as the engine knows its methods in
            # advance and needn't ask call by call; there is no public way to list them.
            service_name = handler.service_name()
            return grpc.method_handlers_generic_handler(
                service_name,
                {
                    path.removeprefix(f"/{service_name}/"): wrap(path, found)
                    for path, found in handler._method_handlers.items()
                },
            )
        return _SignalServiceHandler(handler, wrap)
    if isinstance(handler, grpc.GenericRpcHandler):
        return _SignalGenericHandler(handler, wrap)
    return handler  # not one at all: the server says so in its own words


def wrap_method_handler(
    handler: MethodHandler, path: str = "", instruments: Sequence[Instrument] = ()
) -> MethodHandler:
    """Return a handler like the given one whose method sends the signals.

    Args:
        handler: What `grpc.unary_unary_rpc_method_handler` and its like return.
        path: Where it is served, for the instruments.
        instruments: What is put around the signals, the outermost last.

    Returns:
        A new handler; its method has the given one as ``__wrapped__``.
    """
    if not hasattr(handler, "request_streaming"):
        return handler  # the server says what is wrong with it
    streams = bool(handler.request_streaming), bool(handler.response_streaming)
    field, make_handler = _KINDS[streams]
    behavior: Behavior = getattr(handler, field)
    if not callable(behavior):
        return handler  # as before
    shape = shape_of(behavior, response_streaming=streams[1])
    wrapper = _WRAPPERS[shape](behavior)
    for instrument in instruments:
        wrapper = instrument(path, shape, wrapper)
    wrapped: MethodHandler = make_handler(
        _like(behavior, wrapper),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return wrapped


def _like(behavior: Behavior, wrapper: Behavior) -> Behavior:
    """Give the wrapper what a server, a reader or a tool looks for on the method."""
    with contextlib.suppress(TypeError):  # a mock's name may be a mock
        functools.update_wrapper(wrapper, behavior)
    setattr(wrapper, WRAPPED_BEHAVIOR, behavior)
    for name in ("experimental_non_blocking", "experimental_thread_pool"):
        if hasattr(behavior, name):  # on a class, where update_wrapper doesn't look
            setattr(wrapper, name, getattr(behavior, name))
    return wrapper


def is_servicers_own(exception: Exception, context: Any) -> bool:
    """Whether the servicer failed, rather than answered or lost its peer.

    `context.abort` raises AbortError. Iterating over the requests of a call that has ended raises a
    bare `grpc.RpcError`; what a client stub raises inside a servicer is always a subclass.
    """
    if isinstance(exception, AbortError | grpc.aio.AbortError):
        return False
    return type(exception) is not grpc.RpcError or context.is_active()


# The signals are looked up by name in every call, and so is their send: tests replace either with a
# mock. For methods that take a stream, `request` is the iterator of messages.


def _unary_response(behavior: Behavior) -> Behavior:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            grpc_request_started.send(None, request=request, context=context)
            try:
                return behavior(request, context)
            except Exception as exception:
                if is_servicers_own(exception, context):
                    grpc_got_request_exception.send(
                        None, request=request, context=context, exception=exception
                    )
                raise
        finally:
            grpc_request_finished.send(None, request=request, context=context)

    return call


def _stream_response(behavior: Behavior) -> Behavior:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            grpc_request_started.send(None, request=request, context=context)
            try:
                responses = behavior(request, context)
                if not hasattr(responses, "__iter__"):
                    name = getattr(behavior, "__qualname__", type(behavior).__name__)
                    raise TypeError(
                        f"{name} has to yield, or return an iterator; "
                        f"it has returned an object of type {type(responses).__name__!r}"
                    )
                # Closing this generator closes the servicer's, so that its `finally` blocks have
                # run before the call is called finished.
                yield from responses
            except Exception as exception:
                if is_servicers_own(exception, context):
                    grpc_got_request_exception.send(
                        None, request=request, context=context, exception=exception
                    )
                raise
        finally:
            grpc_request_finished.send(None, request=request, context=context)

    return call


def _coroutine(behavior: Behavior) -> Behavior:
    async def call(request: Any, context: AsyncServicerContext) -> Any:
        try:
            await grpc_request_started.asend(None, request=request, context=context)
            try:
                return await behavior(request, context)
            except Exception as exception:
                if is_servicers_own(exception, context):
                    await grpc_got_request_exception.asend(
                        None, request=request, context=context, exception=exception
                    )
                raise
        finally:
            await grpc_request_finished.asend(None, request=request, context=context)

    return call


def _async_generator(behavior: Behavior) -> Behavior:
    async def call(request: Any, context: AsyncServicerContext) -> AsyncIterator[Any]:
        try:
            await grpc_request_started.asend(None, request=request, context=context)
            try:
                # As in _stream_response; an asynchronous generator is not closed with this one
                # unless somebody does it.
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response
            except Exception as exception:
                if is_servicers_own(exception, context):
                    await grpc_got_request_exception.asend(
                        None, request=request, context=context, exception=exception
                    )
                raise
        finally:
            await grpc_request_finished.asend(None, request=request, context=context)

    return call


def _non_blocking(behavior: Behavior) -> Behavior:
    """Wrap a method that has returned before it answers: its call ends when the RPC does."""

    def call(
        request: Any, context: grpc.ServicerContext, send_response_callback: Callable[[Any], None]
    ) -> None:
        def finish() -> None:
            grpc_request_finished.send(None, request=request, context=context)

        try:
            grpc_request_started.send(None, request=request, context=context)
            behavior(request, context, send_response_callback)
        except BaseException as exception:
            try:
                if isinstance(exception, Exception) and is_servicers_own(exception, context):
                    grpc_got_request_exception.send(
                        None, request=request, context=context, exception=exception
                    )
            finally:
                finish()
            raise
        # The receivers of `finished` will run elsewhere: this thread's connections are seen to now.
        close_old_connections()
        if not context.add_callback(finish):
            finish()

    return call


_WRAPPERS: dict[Shape, Callable[[Behavior], Behavior]] = {
    Shape.VALUE: _unary_response,
    Shape.ITERATOR: _stream_response,
    Shape.COROUTINE: _coroutine,
    Shape.ASYNC_GENERATOR: _async_generator,
    Shape.CALLBACK: _non_blocking,
}

# (takes a stream, answers with a stream) -> field, public constructor
_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def _adder_that_raised(error: AttributeError) -> str | None:
    """Return the name of generated code that an argument lacks something for, if that it is."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    given = error.obj
    # What this wrapper does not have, is looked for in the server's.
    if frames and frames[-1].f_code is SignalWrapper.__getattr__.__code__:
        given = frames.pop().f_locals["self"]
    if not frames or not _ADDER.fullmatch(frames[-1].f_code.co_name):
        return None
    code, variables = frames[-1].f_code, frames[-1].f_locals
    arguments = (variables.get(it) for it in code.co_varnames[: code.co_argcount])
    return code.co_name if any(it is given for it in arguments) else None


def _describe(given: object) -> str:
    if isinstance(given, type):
        return f"class {given.__name__}"
    return f"object of type {type(given).__name__!r}"
