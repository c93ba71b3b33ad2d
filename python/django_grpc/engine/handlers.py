"""Who serves which method: registered handlers, generic handlers and interceptors."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc
from asgiref.sync import iscoroutinefunction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from django_grpc import _engine
    from django_grpc.engine.types import GenericHandler, Interceptor, MethodHandler

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
    """

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        """Create an empty table.

        Raises:
            ValueError: Something among the interceptors is none.
        """
        for interceptor in interceptors:
            if not hasattr(interceptor, "intercept_service"):
                raise ValueError(f"{interceptor!r} is no grpc.ServerInterceptor.")
        self._interceptors = tuple(interceptors)
        self._is_async = any(map(_is_async, self._interceptors))
        self._registered: dict[str, MethodHandler] = {}
        self._generic: list[GenericHandler] = []

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
        """Find the handler of one call, through interceptors of which some are async."""
        return await self._continue_async(0, HandlerCallDetails(path, metadata))

    async def _continue_async(self, index: int, details: Any) -> MethodHandler | None:
        if index == len(self._interceptors):
            return self._look_up(details)
        interceptor: Any = self._interceptors[index]
        proceed = functools.partial(self._continue_async, index + 1)
        found: Any
        if _is_async(interceptor):
            found = await interceptor.intercept_service(proceed, details)
            return cast("MethodHandler | None", found)
        # An ordinary one may block, or ask the ORM.
        loop = asyncio.get_running_loop()
        found = await asyncio.to_thread(
            interceptor.intercept_service,
            lambda next_details: asyncio.run_coroutine_threadsafe(
                proceed(next_details), loop
            ).result(),
            details,
        )
        return cast("MethodHandler | None", await found if inspect.isawaitable(found) else found)

    def _look_up(self, details: Any) -> MethodHandler | None:
        handler = self._registered.get(details.method)
        if handler is not None:
            return handler
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None

    def install(self, native: _engine.Server) -> None:
        """Tell the engine what it has to know."""
        must_ask = any(not _is_dictionary(handler) for handler in self._generic)
        # With a generic handler of the user's before it, a dictionary does not speak first.
        asked_first: set[str] = set()
        known = self.known()
        if must_ask:
            asked_first = known.keys() - self._registered.keys()
        # grpcio's interceptors see calls of unknown methods too.
        native.set_resolver(
            self.resolve_async if self._is_async else self.resolve,
            must_ask or bool(self._interceptors),
            self._is_async,
        )
        for path, handler in known.items():
            if self._interceptors or path in asked_first:
                native.add_resolved_method(
                    path, bool(handler.request_streaming), bool(handler.response_streaming)
                )
            else:
                native.add_method(path, handler)


def _is_async(interceptor: Any) -> bool:
    return iscoroutinefunction(interceptor.intercept_service)


def _is_dictionary(handler: GenericHandler) -> bool:
    return type(handler) is _DictionaryHandler
