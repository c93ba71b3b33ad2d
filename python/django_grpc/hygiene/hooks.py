"""Functions of ours in the place of methods of Django's connections.

They are among a connection's attributes. To derive a class for it would be simpler, but its class
is what receivers of ``connection_created`` ask for as its sender, and what backends keep things in.
"""

import copyreg
import functools
import threading
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_grpc.hygiene.connection_state import is_proxy


class _Hook:
    """Calls a function in the place of a method.

    With a weak reference, lest a connection that is dropped waits for the garbage collector.
    """

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        name: str,
        function: Callable[..., Any],
        arguments: tuple[object, ...],
    ) -> None:
        self._connection = weakref.ref(connection)
        self._name = self.__name__ = name
        self._function = function
        self._arguments = arguments
        self._was_in_class = _in_class(connection, name)
        #: The threads that do what the class says now: tests share connections.
        self._proceeding: set[int] = set()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        connection = self._connection()
        if connection is None:
            raise ReferenceError("the database connection is gone")
        proceed = functools.partial(self._proceed, connection, *arguments, **keywords)
        return self._function(connection, proceed, *self._arguments)

    def _proceed(self, connection: BaseDatabaseWrapper, /, *arguments: Any, **keywords: Any) -> Any:
        """Do what the class says, whatever a test has put there by now.

        That may call what was the connection's before, and means what was in the class then.
        """
        thread, method = threading.get_ident(), _in_class(connection, self._name)
        is_again = thread in self._proceeding
        if is_again and isinstance(self._was_in_class, FunctionType):
            method = self._was_in_class
        self._proceeding.add(thread)
        try:
            # Bound as Python binds it: it need not be a function.
            if (bind := getattr(method, "__get__", None)) is not None:
                method = bind(connection, type(connection))
            return method(*arguments, **keywords)
        finally:
            if not is_again:
                self._proceeding.discard(thread)


def hook(
    connection: BaseDatabaseWrapper, name: str, function: Callable[..., Any], *arguments: object
) -> None:
    """Put a function in the place of a method.

    Args:
        connection: Whose method it is. A copy of it has its own. A proxy that somebody has put in
            its place is left alone.
        name: The method's. What somebody has put in its place stays, as tests put there what
            refuses queries, and look for it again; so does what is no method.
        function: Called with the connection, a function that does what the method would, and the
            arguments.
        *arguments: As they are.
    """
    if is_proxy(connection):
        return
    in_class, standing = _in_class(connection, name), vars(connection).get(name)
    is_method = callable(in_class) or isinstance(in_class, staticmethod | classmethod)
    is_own = standing is None or type(standing) is _Hook  # which a mock may claim to be
    if is_method and (is_own or getattr(standing, "__func__", None) is in_class):
        setattr(connection, name, _Hook(connection, name, function, arguments))
        copyreg.dispatch_table.setdefault(type(connection), _reduce_without_hooks)


def _in_class(connection: BaseDatabaseWrapper, name: str) -> Any:
    return next(vars(it)[name] for it in type(connection).__mro__ if name in vars(it))


def _reduce_without_hooks(connection: Any) -> Any:
    """Reduce a connection for `copy`, so that the copy is without the hooks.

    They would act on the connection that they were made for, and end its transaction even.
    """
    reduced = connection.__reduce_ex__(4)
    if not isinstance(reduced, tuple) or len(reduced) < 3:
        return reduced
    made, arguments, state, *rest = reduced
    if isinstance(state, tuple):  # of a class with slots
        state = (*map(_without_hooks, state),)
    return (made, arguments, _without_hooks(state), *rest)


def _without_hooks(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    return {name: it for name, it in state.items() if type(it) is not _Hook}
