"""Functions of ours in the place of methods of Django's connections.

They are among a connection's attributes. To derive a class for it would be simpler, but its class
is what receivers of ``connection_created`` ask for as its sender, and what backends keep things in.
"""

import copyreg
import functools
import weakref
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper


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
        self._name = name
        self._function = function
        self._arguments = arguments
        self._was_in_class = _in_class(connection, name)
        self._is_proceeding = False

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
        if self._is_proceeding:
            method = self._was_in_class
        else:
            method = _in_class(connection, self._name)
        was_proceeding, self._is_proceeding = self._is_proceeding, True
        try:
            # Bound as Python binds it: it need not be a function.
            if (bind := getattr(method, "__get__", None)) is not None:
                method = bind(connection, type(connection))
            return method(*arguments, **keywords)
        finally:
            self._is_proceeding = was_proceeding


def hook(
    connection: BaseDatabaseWrapper, name: str, function: Callable[..., Any], *arguments: object
) -> None:
    """Put a function in the place of a method.

    Args:
        connection: Whose method it is. A copy of it has its own.
        name: The method's. What somebody has put in its place stays.
        function: Called with the connection, a function that does what the method would, and the
            arguments.
        *arguments: As they are.
    """
    standing = vars(connection).get(name)
    if (
        standing is None
        or isinstance(standing, _Hook)
        or getattr(standing, "__self__", None) is connection
    ):
        setattr(connection, name, _Hook(connection, name, function, arguments))
        copyreg.dispatch_table.setdefault(type(connection), _reduce_without_hooks)


def _in_class(connection: BaseDatabaseWrapper, name: str) -> Any:
    return next(vars(it)[name] for it in type(connection).__mro__ if name in vars(it))


def _reduce_without_hooks(connection: Any) -> Any:
    """Reduce a connection for `copy`, so that the copy is without the hooks.

    They would act on the connection that they were made for, and end its transaction even.
    """
    reduced = connection.__reduce_ex__(4)
    if isinstance(reduced, tuple) and len(reduced) > 2 and isinstance(reduced[2], dict):
        state = {name: it for name, it in reduced[2].items() if not isinstance(it, _Hook)}
        return (*reduced[:2], state, *reduced[3:])
    return reduced
