"""Functions of ours around methods of Django's connections.

They are put into the classes of backends, and looked up as Python looks up methods. So what a tool
has put into a class before it counts, also afterwards; what somebody puts onto a connection in a
method's place is called instead; and copies of a connection are as any other.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

#: What is called with the connection, and a function that does what the method would.
Hook = Callable[[BaseDatabaseWrapper, Callable[[], Any]], Any]


class _Around(NamedTuple):
    function: Hook
    applies: Callable[[], bool] | None


class _Running(threading.local):
    """The hooks that run on this thread, by the method's name and the connection."""

    def __init__(self) -> None:
        self.hooks: set[tuple[str, int]] = set()


_hooks: dict[str, _Around] = {}
_running = _Running()
_lock = threading.Lock()


def hook(name: str, function: Hook, *, applies: Callable[[], bool] | None = None) -> None:
    """Put a function around a method of all backends that `watch_class` is told of later.

    A method may call that of a class before its own, or itself: the hook is around the first.

    Args:
        name: The method's.
        function: The hook.
        applies: Asked on the thread that uses the method. Default: it always does.
    """
    _hooks[name] = _Around(function, applies)


def watch_class(backend: type) -> None:
    """Put the hooks around the methods of a backend's connections, where they are not."""
    if not issubclass(backend, BaseDatabaseWrapper):
        return
    backend = backend.__mro__[0]  # a tool may have put something around the class
    own = vars(backend)
    if all(type(own.get(name)) is _HookedMethod for name in _hooks):
        return
    with _lock:
        for name, around in _hooks.items():
            if type(own.get(name)) is _HookedMethod:
                continue
            # A class may refuse to be changed: its connections are looked after as far as possible.
            with contextlib.suppress(Exception):
                if callable(getattr(backend, name)):
                    setattr(backend, name, _HookedMethod(backend, name, around))


class _HookedMethod:
    """A method with a hook around it, among the attributes of a class.

    Mocks look there for a function, and make one of its signature.
    """

    __class__ = property(lambda self: FunctionType)

    def __init__(self, owner: type, name: str, around: _Around) -> None:
        self._owner = owner
        self._name = name
        self._own = vars(owner).get(name)  # else it is inherited
        self._function, self._applies = around
        self._last: tuple[Callable[..., Any] | None, Callable[..., Any]] = None, self._function
        functools.update_wrapper(self, getattr(owner, name), updated=())

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("__wrapped__"), name)

    def __call__(self, connection: BaseDatabaseWrapper, *arguments: Any, **keywords: Any) -> Any:
        return self.__get__(connection, type(connection))(*arguments, **keywords)

    def __get__(self, connection: Any, kind: type | None = None) -> Any:
        """Return the method, and as what Python would find now: it may be called later."""
        owner = self._owner
        if self._own is not None:
            bind = getattr(self._own, "__get__", None)  # not each callable is a function
            method = self._own if bind is None else bind(connection, kind)
        else:
            method = getattr(super(owner, kind if connection is None else connection), self._name)
        if connection is None:
            return self._around(method)
        if self._applies is not None and not self._applies():
            return method
        if type(method) is MethodType and method.__self__ is connection:  # and no tool's
            return MethodType(self._around(method.__func__), connection)
        # Somebody has put there what is no method.
        return lambda *arguments, **keywords: self._run(
            connection, functools.partial(method, *arguments, **keywords)
        )

    def _around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the hook around what mostly is the same as the last time."""
        last, hooked = self._last
        if last is not method:

            @functools.wraps(method)
            def hooked(connection: BaseDatabaseWrapper, /, *arguments: Any, **keywords: Any) -> Any:
                return self._run(
                    connection, functools.partial(method, connection, *arguments, **keywords)
                )

            self._last = method, hooked
        return hooked

    def _run(self, connection: BaseDatabaseWrapper, proceed: Callable[[], Any]) -> Any:
        if self._applies is not None and not self._applies():
            return proceed()
        running, this = _running.hooks, (self._name, id(connection))
        if this in running:
            return proceed()
        running.add(this)
        try:
            return self._function(connection, proceed)
        finally:
            running.discard(this)
