"""Who serves which method: registered handlers, generic handlers and interceptors."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc
import grpc.aio
from asgiref.sync import iscoroutinefunction

from django_grpc.engine.crossings import Crossing, CrossingThreads, Visit
from django_grpc.logs import GuardedLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from django_grpc import _engine
    from django_grpc.engine.types import (
        GenericHandler,
        Interceptor,
        MethodHandler,
        Surroundings,
    )

logger = GuardedLogger("django_grpc")

#: An attribute of a behaviour that `django_grpc.signals` has wrapped: the one that it was.
WRAPPED_BEHAVIOR = "_django_grpc_behavior"

#: What generated code makes; it answers by path alone, so it can be looked through in advance.
_DictionaryHandler = type(grpc.method_handlers_generic_handler("", {}))


class HandlerCallDetails(NamedTuple):
    """A call, as interceptors and generic handlers see it; a `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: tuple[Any, ...]


grpc.HandlerCallDetails.register(HandlerCallDetails)  # type: ignore[attr-defined]


class HandlerTable:
    """The handlers of a server.

    What does not change from call to call is looked up once, when the server starts: a method
    whose handler is known runs without any Python of ours. Only interceptors, and generic handlers
    that have to be asked, cost a look-up for each call.

    Attributes:
        surroundings: What is put around whatever the table runs on threads of its own.
    """

    surroundings: Surroundings | None = None

    def __init__(
        self,
        interceptors: Sequence[Interceptor],
        *,
        max_threads: int,
        exit_callbacks: list[Callable[[], object]],
        asks_on_loop: bool = False,
    ) -> None:
        """Create an empty table.

        Args:
            interceptors: Ordinary and async ones, the outermost first.
            max_threads: How many calls may be in ordinary interceptors at the same time, where
                there are async ones beside them.
            exit_callbacks: What the threads of these call before they end.
            asks_on_loop: Generic handlers are asked on the loop, as grpc.aio does, and not on a
                thread.

        Raises:
            ValueError: Something among the interceptors is none.
        """
        for interceptor in interceptors:
            if not hasattr(interceptor, "intercept_service"):
                raise ValueError(f"{interceptor!r} is no grpc.ServerInterceptor.")
            if _lacks_self(interceptor):
                raise ValueError(f"{interceptor!r} is a class: give an instance of it.")
        self._interceptors = tuple(interceptors)
        self._are_async = tuple(map(_is_async, self._interceptors))
        self._asks_on_loop = asks_on_loop
        self._threads = CrossingThreads(max_threads, exit_callbacks)
        self._registered: dict[str, MethodHandler] = {}
        self._generic: list[GenericHandler] = []
        self._must_ask = False

    def add_generic(self, handlers: Iterable[GenericHandler]) -> None:
        """Add generic handlers.

        Raises:
            AttributeError: One has no `service` method, as grpcio says it.
        """
        handlers = tuple(handlers)
        for handler in handlers:
            if getattr(handler, "service", None) is None:
                raise AttributeError(
                    f'"{handler}" must conform to grpc.GenericRpcHandler type but does not have '
                    f'"service" method!'
                )
        self._generic.extend(handlers)
        self._must_ask = not all(map(_is_dictionary, self._generic))

    def add_registered(self, service_name: str, handlers: Mapping[str, MethodHandler]) -> None:
        """Register handlers by method name."""
        for method, handler in handlers.items():
            self._registered[f"/{service_name}/{method}"] = handler

    def known(self) -> dict[str, MethodHandler]:
        """Return every handler that is known by path; registered ones go before generic ones."""
        known: dict[str, MethodHandler] = {}
        for handler in reversed(self._generic):
            if _is_dictionary(handler):
                # There is no public way to list them.
                known.update(handler._method_handlers)  # type: ignore[attr-defined]
        return known | self._registered

    @property
    def knows_all(self) -> bool:
        """Whether `known` returns every handler that there is."""
        return not self._must_ask

    def resolve(self, path: str, metadata: tuple[Any, ...]) -> MethodHandler | None:
        """Find the handler of one call, through the interceptors."""
        return self._continue(0, HandlerCallDetails(path, metadata))

    def _continue(self, index: int, details: Any) -> MethodHandler | None:
        if index == len(self._interceptors):
            return self._look_up(details)

        def continuation(next_details: Any) -> MethodHandler | None:
            return self._continue(index + 1, next_details)

        return self._interceptors[index].intercept_service(continuation, details)

    async def resolve_async(self, path: str, metadata: tuple[Any, ...]) -> MethodHandler | None:
        """Find the handler of one call, of which something is to run on the loop."""
        crossing = Crossing(self._threads, self.surroundings)
        return await self._continue_on_loop(0, HandlerCallDetails(path, metadata), crossing)

    async def _continue_on_loop(
        self, index: int, details: Any, crossing: Crossing
    ) -> MethodHandler | None:
        found: Any
        if not self._runs_on_loop(index):
            found = await crossing.on_thread(
                functools.partial(self._continue_on_thread, index, details)
            )
        elif index == len(self._interceptors):
            found = self._look_up(details)
        else:

            async def continuation(next_details: Any) -> MethodHandler | None:
                return await self._continue_on_loop(index + 1, next_details, crossing)

            interceptor: Any = self._interceptors[index]
            found = interceptor.intercept_service(continuation, details)
            if inspect.isawaitable(found):
                found = await found
        return cast("MethodHandler | None", found)

    def _continue_on_thread(self, index: int, details: Any, visit: Visit) -> MethodHandler | None:
        found: Any
        if self._runs_on_loop(index):
            found = visit.on_loop(functools.partial(self._continue_on_loop, index, details))
        elif index == len(self._interceptors):
            found = self._look_up(details)
        else:

            def continuation(next_details: Any) -> MethodHandler | None:
                return self._continue_on_thread(index + 1, next_details, visit)

            found = self._interceptors[index].intercept_service(continuation, details)
        return cast("MethodHandler | None", found)

    def _runs_on_loop(self, index: int) -> bool:
        """Whether an interceptor, or the look-up after the last one, is for the loop."""
        if index < len(self._interceptors):
            return self._are_async[index]
        # A handler that has to be asked is the user's code; the others only read a dictionary.
        return self._asks_on_loop or not self._must_ask

    def _look_up(self, details: Any) -> MethodHandler | None:
        handler = self._registered.get(details.method)
        if handler is not None:
            return handler
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None

    def close(self) -> None:
        """End the threads, when no call will come any more."""
        self._threads.close()

    def install(self, native: _engine.Server) -> None:
        """Tell the engine what it has to know.

        Raises:
            TypeError: A handler is none; the text has its path.
        """
        is_async = any(self._are_async) or (self._must_ask and self._asks_on_loop)
        # With a generic handler of the user's before it, a dictionary does not speak first.
        asked_first: set[str] = set()
        known = self.known()
        if self._must_ask:
            asked_first = known.keys() - self._registered.keys()
        # grpcio's interceptors see calls of unknown methods too.
        native.set_resolver(
            self.resolve_async if is_async else self.resolve,
            self._must_ask or bool(self._interceptors),
            is_async,
        )
        if without := sorted(it for it, handler in known.items() if lacks_instance(handler)):
            logger.warning(
                "All calls of %s fail: a servicer class was added in the place of an instance. "
                "Write add_MyServiceServicer_to_server(MyService(), server).",
                ", ".join(without),
            )
        for path, handler in known.items():
            try:
                if self._interceptors or path in asked_first:
                    native.add_resolved_method(
                        path, bool(handler.request_streaming), bool(handler.response_streaming)
                    )
                else:
                    native.add_method(path, handler)
            except (AttributeError, TypeError) as error:
                raise TypeError(f"{path}: {error}") from error


def behavior_of(handler: Any) -> Any:
    """Return the behaviour of a method handler, as before it was wrapped; None: it has none."""
    for kinds in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        if (behavior := getattr(handler, kinds, None)) is not None:
            return getattr(behavior, WRAPPED_BEHAVIOR, behavior)
    return None


def lacks_instance(handler: Any) -> bool:
    """Whether the behaviour of a method handler is that of a class, which needs an instance."""
    behavior = behavior_of(handler)
    if not inspect.isfunction(behavior):
        return False
    code = behavior.__code__
    needed = code.co_argcount - len(behavior.__defaults__ or ())
    return needed == 3 and code.co_varnames[0] == "self"


def _lacks_self(interceptor: Any) -> bool:
    """Whether it is a class whose `intercept_service` needs an instance."""
    return (
        isinstance(interceptor, type)
        and inspect.isfunction(interceptor.intercept_service)  # type: ignore[attr-defined]
        and not isinstance(inspect.getattr_static(interceptor, "intercept_service"), staticmethod)
    )


def _is_async(interceptor: Any) -> bool:
    # A function that is not marked as a coroutine function may return an awaitable all the same.
    return isinstance(interceptor, grpc.aio.ServerInterceptor) or iscoroutinefunction(
        interceptor.intercept_service
    )


def _is_dictionary(handler: GenericHandler) -> bool:
    return type(handler) is _DictionaryHandler
