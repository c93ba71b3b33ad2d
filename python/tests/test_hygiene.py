"""The short cuts for Django's stock receivers do what those do."""

import contextvars
import copy
import dataclasses
import functools
import gc
import inspect
import itertools
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import MethodType, SimpleNamespace
from typing import ClassVar
from unittest import mock

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.db import DatabaseError, connection, connections, transaction
from django.db import close_old_connections as stock_close_old_connections
from django.db import reset_queries as stock_reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.utils import ConnectionHandler
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from harness import Forwarding, leave_half_read
from sampleapp.caches import ClosableCache

from django_grpc import hygiene
from django_grpc.hygiene import held_connections, hooks, loop_calls
from django_grpc.signals import grpc_request_finished, grpc_request_started

# The databases are in memory, one for each thread, and no test needs a table.
pytestmark = pytest.mark.usefixtures("databases_allowed", "like_a_server")


def in_thread(work):
    """Run on a thread of its own, which has no connections yet, and return the result."""
    outcome = SimpleNamespace()

    def run():
        try:
            outcome.result = work()
        except BaseException as error:
            outcome.error = error
        finally:
            for opened in connections.all(initialized_only=True):
                if opened.connection is not None:
                    opened.connection.close()  # Django leaves in-memory databases open

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if hasattr(outcome, "error"):
        raise outcome.error
    return outcome.result


STATES = [
    dict(zip(("autocommit", "errors_occurred", "age", "is_usable"), values, strict=True))
    for values in itertools.product(
        [True, False], [True, False], [None, "young", "old"], [True, False]
    )
]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_open_connection_fares_as_with_the_stock_receiver(state, monkeypatch):
    monkeypatch.setattr(DatabaseWrapper, "is_usable", lambda self: state["is_usable"])

    def outcome_of(close_old_connections):
        connection.ensure_connection()
        connection.set_autocommit(state["autocommit"])
        connection.errors_occurred = state["errors_occurred"]
        connection.health_check_done = True
        connection.close_at = {
            None: None,
            "young": time.monotonic() + 1000,
            "old": time.monotonic() - 1,
        }[state["age"]]
        # In-memory databases ignore close(), so what is asked for is noted.
        closed = []
        connection.close = lambda: closed.append(True)
        try:
            close_old_connections()
            return closed, connection.errors_occurred, connection.health_check_done
        finally:
            del connection.close
            connection.set_autocommit(True)

    assert in_thread(lambda: outcome_of(hygiene.close_old_connections)) == in_thread(
        lambda: outcome_of(stock_close_old_connections)
    )


@pytest.mark.parametrize("reset_queries", [hygiene.reset_queries, stock_reset_queries])
def test_queries_of_the_last_call_are_forgotten(reset_queries):
    def count_queries():
        connection.force_debug_cursor = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        before = len(connection.queries)
        reset_queries()
        return before, len(connection.queries)

    assert in_thread(count_queries) == (1, 0)


def test_backend_with_a_rule_of_its_own_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(
        DatabaseWrapper, "close_if_unusable_or_obsolete", lambda self: asked.append(self.alias)
    )

    def work():
        connection.ensure_connection()
        hygiene.close_old_connections()

    in_thread(work)
    assert asked == ["default"]


def test_connection_that_was_open_before_the_first_call_is_seen():
    def work():
        connection.ensure_connection()
        connection.health_check_done = True
        grpc_request_started.send(None, request=None, context=None)
        return connection.health_check_done

    assert in_thread(work) is False


def test_connection_that_opens_during_a_call_is_seen_at_its_end():
    def work():
        grpc_request_started.send(None, request=None, context=None)
        connection.ensure_connection()
        connection.errors_occurred = True
        grpc_request_finished.send(None, request=None, context=None)
        return connection.errors_occurred

    assert in_thread(work) is False


def test_connection_of_another_thread_is_left_alone():
    def work():
        connection.ensure_connection()
        connection.errors_occurred = True
        in_thread(lambda: grpc_request_finished.send(None, request=None, context=None))
        return connection.errors_occurred

    assert in_thread(work) is True


@pytest.fixture
def asked(monkeypatch):
    """The connections that were asked whether they are usable; those in `dead` are not."""
    asked = SimpleNamespace(list=[], dead=set())

    def is_usable(self):
        asked.list.append(self.alias)
        return self not in asked.dead

    monkeypatch.setattr(DatabaseWrapper, "is_usable", is_usable)
    return asked


def ask(alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def test_dead_connection_has_those_of_other_threads_asked(asked):
    """One that the database has dropped is a reason to doubt the others, once for each thread."""

    def die():
        connection.ensure_connection()
        connection.close = lambda: setattr(connection, "connection", None)
        asked.dead.add(connections["default"])
        connection.errors_occurred = True
        hygiene.CALL_HYGIENE.leave()
        return connection.connection

    def work():
        ask()
        hygiene.CALL_HYGIENE.enter()
        hygiene.CALL_HYGIENE.leave()
        assert asked.list == []
        assert in_thread(die) is None
        asked.list.clear()
        for _ in range(3):
            hygiene.CALL_HYGIENE.enter()
            hygiene.CALL_HYGIENE.leave()
        assert asked.list == [], "a call that does not use it waits for nothing"
        for _ in range(3):
            hygiene.CALL_HYGIENE.enter()
            ask()
            ask()
            hygiene.CALL_HYGIENE.leave()
        return connection.connection is None, connection.health_check_enabled

    assert in_thread(work) == (False, False)
    assert asked.list == ["default"]


@pytest.mark.parametrize("connects_again", [True, False])
@pytest.mark.parametrize("has_opened", [True, False])
def test_connection_that_django_has_closed_dead_has_others_asked(has_opened, connects_again, asked):
    """As `atomic` does whose rollback fails; one that can't be opened says nothing of others."""

    def die():
        if has_opened:
            connection.ensure_connection()
            connection.connection.close()  # it is in memory, and would be kept open
            connection.connection = None
        connection.errors_occurred = True
        if connects_again:
            connection.ensure_connection()
            assert not connection.errors_occurred
        for _ in range(3):
            hygiene.CALL_HYGIENE.leave()

    def work():
        ask()
        hygiene.CALL_HYGIENE.enter()
        hygiene.CALL_HYGIENE.leave()
        asked.list.clear()
        for _ in range(2):
            in_thread(die)
        hygiene.CALL_HYGIENE.enter()
        ask()
        hygiene.CALL_HYGIENE.leave()
        return asked.list

    assert in_thread(work) == ["default"] * has_opened


def test_what_a_test_has_put_in_the_place_of_connect_is_called_as_by_django():
    def work():
        connection.close = lambda: None
        connections["default"].connection = None
        with mock.patch.object(DatabaseWrapper, "connect") as connect:
            hygiene.CALL_HYGIENE.enter()
            connection.ensure_connection()
        connect.assert_called_once_with()

    in_thread(work)


def test_copy_of_a_connection_takes_no_doubt_of_it_away(asked):
    """It has the same alias. The connection would be asked for ever."""

    def die():
        connection.ensure_connection()
        connection.connection.close()
        connection.connection = None
        connection.errors_occurred = True
        hygiene.CALL_HYGIENE.leave()

    def work():
        ask()
        hygiene.CALL_HYGIENE.enter()
        hygiene.CALL_HYGIENE.leave()
        in_thread(die)
        asked.list.clear()
        for _ in range(3):
            hygiene.CALL_HYGIENE.enter()
            copy = connections["default"].copy()
            copy.ensure_connection()
            copy.connection.close()
            ask()
            hygiene.CALL_HYGIENE.leave()
        return asked.list

    assert in_thread(work) == ["default"]


def test_dead_connection_says_nothing_of_other_databases(asked, monkeypatch):
    monkeypatch.setitem(connections.settings, "other", connections.settings["default"])

    def die():
        connections["other"].ensure_connection()
        connections["other"].errors_occurred = True
        asked.dead.add(connections["other"])
        connections["other"].close = lambda: setattr(connections["other"], "connection", None)
        hygiene.CALL_HYGIENE.leave()

    def work():
        ask("default")
        ask("other")
        hygiene.CALL_HYGIENE.enter()
        hygiene.CALL_HYGIENE.leave()
        in_thread(die)
        asked.list.clear()
        hygiene.CALL_HYGIENE.enter()
        ask("default")
        before = [*asked.list]
        ask("other")
        hygiene.CALL_HYGIENE.leave()
        return before, asked.list

    assert in_thread(work) == ([], ["other"])


def test_connection_that_a_test_shares_keeps_its_transaction():
    """The thread of a test server uses the test's connection, and is not the one to close it."""

    def work():
        shared = connections["default"]
        shared.ensure_connection()
        shared.inc_thread_sharing()
        shared.errors_occurred = True

        def serve():
            connections["default"] = shared
            try:
                grpc_request_started.send(None, request=None, context=None)
                grpc_request_finished.send(None, request=None, context=None)
            finally:
                del connections["default"]

        in_thread(serve)
        shared.dec_thread_sharing()
        return shared.errors_occurred

    assert in_thread(work) is True


@pytest.mark.parametrize(
    ("backend", "closed"),
    [
        ("sampleapp.caches.ClosableCache", ["closed"]),
        ("django.core.cache.backends.locmem.LocMemCache", []),
    ],
)
def test_used_caches_are_closed_at_the_end_of_a_call(backend, closed):
    ClosableCache.closed.clear()
    with override_settings(CACHES={"default": {"BACKEND": backend}}):
        caches["default"].get("key")
        grpc_request_started.send(None, request=None, context=None)
        assert ClosableCache.closed == []
        grpc_request_finished.send(None, request=None, context=None)
        assert ClosableCache.closed == closed


def test_caches_are_closed_where_a_tool_has_a_function_around_that(monkeypatch):
    closed, close = [], BaseCache.close
    monkeypatch.setattr(BaseCache, "close", lambda self: (closed.append(True), close(self)))
    backend = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    with override_settings(CACHES={"default": backend}):
        caches["default"].get("key")
        grpc_request_finished.send(None, request=None, context=None)
        assert closed == [True]


def test_cache_that_nobody_uses_need_not_be_there():
    """As with Django's own `close_caches`."""
    backends = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "other": {"BACKEND": "not_installed.Cache"},
    }
    with override_settings(CACHES=backends):
        caches["default"].get("key")
        grpc_request_started.send(None, request=None, context=None)
        grpc_request_finished.send(None, request=None, context=None)


def test_a_proxy_in_the_place_of_a_connection_is_left_alone():
    """As tests put `django.db.connection` there."""

    def open_cursor():
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone()

    assert in_thread(open_cursor) == (1,)


@pytest.mark.parametrize("is_calls", [True, False])
@pytest.mark.parametrize("kind", ["stock", "with slots", "class exchanged"])
def test_copy_of_a_connection_is_used_for_itself(is_calls, kind):
    """As by those who write what is to stay outside of a transaction."""

    def work():
        if kind == "with slots":
            connections["default"] = SlottedWrapper(connection.settings_dict, "default")
            connections["default"].extra = None
        elif kind == "class exchanged":
            ask()
            connections["default"].__class__ = TracedWrapper
        if is_calls:
            hygiene.CALL_HYGIENE.enter()
        copied = connections["default"]
        with transaction.atomic():
            ask()
            driver = copied.connection
            other = copy.copy(copied)
            other.connection = None
            with other.chunked_cursor() as cursor:
                assert cursor.execute("SELECT 1").connection is other.connection is not driver
            assert copied.connection is driver
            assert copied.in_atomic_block
        other.connection.close()
        if is_calls:
            hygiene.CALL_HYGIENE.leave()

    in_thread(work)


def test_receivers_may_ask_for_the_class_of_a_backend():
    """As Django documents the sender of `connection_created`."""
    opened = []

    def work():
        connection.ensure_connection()
        assert type(connections["default"]) is DatabaseWrapper

    def note(**keywords):
        opened.append(keywords["sender"])

    connection_created.connect(note, sender=DatabaseWrapper)
    try:
        in_thread(work)
    finally:
        connection_created.disconnect(note, sender=DatabaseWrapper)
    assert opened == [DatabaseWrapper]


@pytest.mark.parametrize("name", ["connect", "ensure_connection", "commit", "rollback"])
def test_what_a_test_has_put_into_the_class_may_be_any_callable(name):
    def work():
        asked = []
        with mock.patch.object(DatabaseWrapper, name, staticmethod(lambda: asked.append(name))):
            getattr(connection, name)()
        return asked

    assert in_thread(work) == [name]


@pytest.mark.parametrize("name", ["connect", "ensure_connection", "commit", "rollback"])
def test_what_a_test_has_put_into_the_class_may_call_what_was_the_connections(name):
    """As a test of Django's own does, to count what is asked when a connection opens."""

    def work():
        connection.ensure_connection()
        before = getattr(connection, name)
        asked = []

        def count():
            asked.append(name)
            before()

        with mock.patch.object(BaseDatabaseWrapper, name, side_effect=count):
            getattr(connection, name)()
        return asked

    assert in_thread(work) == [name]


@pytest.mark.parametrize("name", ["connect", "ensure_connection", "commit", "rollback"])
def test_what_a_tool_has_put_into_the_class_may_call_itself_again(name, monkeypatch):
    """As those do that try again."""
    asked = []
    before = getattr(BaseDatabaseWrapper, name)

    def try_again(self):
        asked.append(name)
        return before(self) if len(asked) > 2 else getattr(self, name)()

    def work():
        connection.ensure_connection()
        monkeypatch.setattr(BaseDatabaseWrapper, name, try_again)
        getattr(connection, name)()
        monkeypatch.undo()
        return asked

    assert in_thread(work)[:3] == [name] * 3


@pytest.mark.parametrize("name", ["connect", "chunked_cursor", "ensure_connection", "commit"])
def test_methods_of_a_connection_stay_methods(name):
    """As tools that wrap them, and mocks of them, expect."""

    def work():
        its_own = connections["default"]
        method = getattr(its_own, name)
        assert inspect.ismethod(method)
        assert method == getattr(its_own, name)
        assert method.__self__ is its_own
        assert method.__doc__ == getattr(DatabaseWrapper, name).__doc__
        with pytest.raises(TypeError, match="too many positional arguments"):
            mock.create_autospec(method)(1, 2, 3, 4)

    in_thread(work)


@pytest.mark.parametrize("name", ["connect", "chunked_cursor", "ensure_connection", "commit"])
def test_mocks_of_the_class_are_as_of_any(name):
    def work():
        ask()
        method = getattr(DatabaseWrapper, name)
        with mock.patch.object(DatabaseWrapper, name, autospec=True, side_effect=method) as mocked:
            getattr(connections["default"], name)()
        mocked.assert_called_once_with(connections["default"])
        getattr(mock.create_autospec(DatabaseWrapper, instance=True), name)()
        getattr(mock.create_autospec(DatabaseWrapper)({}, "x"), name)()
        assert inspect.isfunction(inspect.getattr_static(DatabaseWrapper, name))

    in_thread(work)


@pytest.mark.parametrize("name", ["connect", "ensure_connection", "chunked_cursor"])
def test_what_wraps_a_method_of_the_class_later_wraps_the_hook_too(name, monkeypatch):
    """As tools do that watch queries."""
    method = getattr(DatabaseWrapper, name)
    asked = []

    def wrapper(self, *arguments, **keywords):
        asked.append(name)
        return method(self, *arguments, **keywords)

    def work():
        monkeypatch.setattr(DatabaseWrapper, name, wrapper)
        loop_calls.current_call.set(call := loop_calls.LoopCall())
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT 1")
            its_own = "close" in vars(cursor)
        assert asked
        assert its_own, "cursors are closed at home"
        assert call.uses_database

    in_thread(work)


@pytest.mark.parametrize("name", ["connect", "chunked_cursor"])
def test_what_stands_for_a_method_is_called(name, monkeypatch):
    """As what wrapt puts there, which looks like the method and does more."""
    asked = []

    class Wrapper:
        def __init__(self, method):
            self.method = method

        def __get__(self, connection, kind=None):
            bound = self.method.__get__(connection, kind)
            return Bound(bound)

    class Bound:
        __class__ = property(lambda self: MethodType)

        def __init__(self, bound):
            self.bound = bound
            self.__self__, self.__func__ = bound.__self__, bound.__func__

        def __call__(self, *arguments):
            asked.append(name)
            return self.bound(*arguments)

    method = vars(BaseDatabaseWrapper)[name]

    def work():
        monkeypatch.setattr(BaseDatabaseWrapper, name, Wrapper(method))
        connection.chunked_cursor().close()
        return asked

    assert in_thread(work) == [name]


def test_a_rule_that_a_tool_has_something_around_is_asked(monkeypatch):
    """As wrapt puts it there, which tells of the function that is in it."""
    asked = []

    class Bound:
        __class__ = property(lambda self: MethodType)

        def __init__(self, bound):
            self.bound = bound

        def __getattr__(self, name):
            return getattr(self.bound, name)

        def __call__(self):
            asked.append(True)
            return self.bound()

    class Wrapper:
        def __init__(self, method):
            self.method = method

        def __get__(self, connection, kind=None):
            return Bound(self.method.__get__(connection, kind))

    name = "close_if_unusable_or_obsolete"

    def work():
        monkeypatch.setattr(DatabaseWrapper, name, Wrapper(vars(BaseDatabaseWrapper)[name]))
        ask()
        connection.close_at = None
        hygiene.close_old_connections()
        return asked

    assert in_thread(work) == [True]


class ClassProxy:
    """What a tool puts in a class' place to see its instances made."""

    def __init__(self, kind):
        vars(self)["kind"] = kind

    def __getattr__(self, name):
        return getattr(self.kind, name)

    def __setattr__(self, name, value):
        setattr(self.kind, name, value)

    def __call__(self, *arguments):
        return self.kind(*arguments)


def test_a_backend_whose_class_is_behind_a_proxy():
    class Traced(DatabaseWrapper):
        pass

    proxy = ClassProxy(Traced)
    hooks.watch_class(proxy)

    def work():
        loop_calls.current_call.set(call := loop_calls.LoopCall())
        connections["default"] = proxy(connection.settings_dict, "default")
        ask()
        return call.uses_database

    assert in_thread(work)


def test_a_method_that_is_replaced_in_a_class_has_the_hook_again(monkeypatch):
    """As a project does that connects as often as need be."""

    class Retrying(DatabaseWrapper):
        pass

    hooks.watch_class(Retrying)

    def ensure_connection(self):
        if self.connection is None:
            self.connect()

    Retrying.ensure_connection = ensure_connection

    def work():
        connections["default"] = Retrying(connection.settings_dict, "default")
        ask()  # opens it
        loop_calls.current_call.set(call := loop_calls.LoopCall())
        ask()
        return call.uses_database

    assert in_thread(work)


def test_hooks_are_put_there_once(monkeypatch):
    """Also as many threads open their first connections."""

    class Slow(type):
        def __setattr__(cls, name, value):
            time.sleep(0.001)
            super().__setattr__(name, value)

    class Backend(DatabaseWrapper, metaclass=Slow):
        pass

    made = []
    hooked = hooks._HookedMethod

    class Counted(hooked):
        def __init__(self, owner, name, around):
            made.append(name)
            super().__init__(owner, name, around)

    monkeypatch.setattr(hooks, "_HookedMethod", Counted)
    with ThreadPoolExecutor(4) as pool:
        for watched in [pool.submit(hooks.watch_class, Backend) for _ in range(4)]:
            watched.result()
    assert len(made) == len(set(made)) > 1


class Frozen(type):
    """Of classes that nobody may change."""

    def __setattr__(cls, name, value):
        raise TypeError("a frozen class")


class FrozenWrapper(DatabaseWrapper, metaclass=Frozen):
    """A backend whose class can't be changed, and which knows its attributes."""

    def __getattr__(self, name):
        raise KeyError(name)

    def __setattr__(self, name, value):
        if name.startswith("_django_grpc"):
            raise AttributeError(name)
        super().__setattr__(name, value)


def test_a_backend_whose_class_can_not_be_changed():
    def work():
        hygiene.CALL_HYGIENE.enter()
        connections["default"] = FrozenWrapper(connection.settings_dict, "default")
        ask()
        connection.set_autocommit(False)
        hygiene.CALL_HYGIENE.leave()
        assert connection.get_autocommit()

    in_thread(work)


def test_hooks_of_a_class_count_for_one_before_it_that_can_not_be_changed():
    def work():
        hooks.watch_class(DatabaseWrapper)
        loop_calls.current_call.set(call := loop_calls.LoopCall())
        connections["default"] = FrozenWrapper(connection.settings_dict, "default")
        ask()
        ask()
        return call.uses_database

    assert in_thread(work)


class Showing(Forwarding):
    """A proxy that keeps what is set to itself."""

    def __setattr__(self, name, value):
        self.__dict__[name] = value


def test_a_connection_behind_a_proxy_is_asked_for_its_health_by_each_call():
    def work():
        its_own = connections["default"]
        ask()
        its_own.health_check_enabled, its_own.close_at = True, None
        connections["default"] = Showing(its_own)
        for _ in range(3):
            hygiene.CALL_HYGIENE.enter()
            ask()
            checked = its_own.health_check_done
            hygiene.CALL_HYGIENE.leave()
            assert (checked, its_own.health_check_done) == (True, False)

    in_thread(work)


def test_a_transaction_behind_a_proxy_that_keeps_what_is_set_ends_with_its_call():
    def work():
        its_own = connections["default"]
        connections["default"] = Showing(its_own)
        hygiene.CALL_HYGIENE.enter()
        ask()
        transaction.atomic().__enter__()
        hygiene.CALL_HYGIENE.leave()
        assert not its_own.in_atomic_block
        assert not its_own.closed_in_transaction
        hygiene.CALL_HYGIENE.enter()
        ask()
        hygiene.CALL_HYGIENE.leave()

    in_thread(work)


@pytest.mark.parametrize(
    "lend",
    [
        lambda its_own: None,
        lambda its_own: connections.create_connection("default"),
        lambda its_own: connections.create_connection("default").ensure_connection(),
        lambda its_own: (its_own.inc_thread_sharing(), look(), its_own.dec_thread_sharing()),
        lambda its_own: its_own.inc_thread_sharing(),
        lambda its_own: setattr(connections["default"], "__class__", TracedWrapper),
    ],
    ids=["nothing", "made", "opened", "lent and taken back", "lent for good", "class exchanged"],
)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_threads_own_connection_is_looked_after_whatever_was_done_with_it(lend, is_new):
    def work():
        hygiene.CALL_HYGIENE.enter()
        its_own = connections["default"]
        if is_new:
            lend(its_own)
        ask()
        if not is_new:
            lend(its_own)
        its_own.set_autocommit(False)
        hygiene.CALL_HYGIENE.leave()
        hygiene.CALL_HYGIENE.enter()
        assert connections["default"] is its_own
        assert its_own.get_autocommit()
        hygiene.CALL_HYGIENE.leave()

    in_thread(work)


def look():
    """Have all that this thread holds looked after, as between two calls."""
    hygiene.CALL_HYGIENE.leave()
    hygiene.CALL_HYGIENE.enter()


class DelegatingHandler:
    """What a project may have as `django.db.connections`."""

    def __init__(self):
        self._handler = ConnectionHandler(connections.settings)

    def __getattr__(self, name):
        return getattr(self._handler, name)

    def __getitem__(self, alias):
        return self._handler[alias]


class KeepingHandler(ConnectionHandler):
    """One that keeps connections somewhere else than it looks."""

    def __init__(self, settings):
        super().__init__(settings)
        self.kept = {}

    def __getitem__(self, alias):
        return self.kept.setdefault(alias, super().__getitem__(alias))

    def all(self, initialized_only=False):
        return list(self.kept.values())


class SlottedHandler:
    """One that has nothing of Django's."""

    def __init__(self):
        self._default = ConnectionHandler(connections.settings)["default"]

    def all(self, initialized_only=False):
        return [self._default]

    def __getitem__(self, alias):
        return self._default


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConnectionHandler(connections.settings),
        DelegatingHandler,
        lambda: KeepingHandler(connections.settings),
        SlottedHandler,
    ],
    ids=["stock", "delegating", "keeping", "of its own"],
)
def test_connections_of_a_handler_that_is_put_there_later(make, monkeypatch):
    """Django's receivers ask `django.db.connections`, whatever that is by then."""

    def work():
        look()
        monkeypatch.setattr("django.db.connections", handler := make())
        handler["default"].ensure_connection()
        for _ in range(2):
            look()
            handler["default"].set_autocommit(False)
        look()
        assert handler["default"].get_autocommit()
        handler["default"].connection.close()
        monkeypatch.undo()
        hygiene.CALL_HYGIENE.leave()

    in_thread(work)


def test_a_rule_that_is_put_onto_a_connection_is_asked():
    def work():
        asked = []
        ask()
        connections["default"].close_if_unusable_or_obsolete = lambda: asked.append(True)
        look()
        hygiene.CALL_HYGIENE.leave()
        return asked

    assert in_thread(work)


@pytest.mark.parametrize("is_calls", [True, False])
def test_cursors_of_a_backend_are_closed_as_it_has_it(is_calls):
    closed = []

    class Cursor(CursorWrapper):
        def close(self):
            closed.append(self)
            self.cursor.close()

    class Wrapper(DatabaseWrapper):
        def make_cursor(self, cursor):
            return Cursor(cursor, self)

    def work():
        if is_calls:
            hygiene.CALL_HYGIENE.start()
        connections["default"] = Wrapper(connection.settings_dict, "default")
        for _ in range(2):
            with connection.chunked_cursor() as cursor:
                cursor.execute("SELECT 1")
            with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
                cursor.cursor.fetchone()
        return closed

    assert len(in_thread(work)) == 2


@pytest.mark.parametrize("make_cursor", ["of the driver", "without a place for anything"])
def test_cursors_of_a_backend_may_be_other_than_djangos(make_cursor):
    class Bare:
        __slots__ = ()

        def fetchone(self):
            return (1,)

    class Wrapper(DatabaseWrapper):
        def chunked_cursor(self):
            if make_cursor == "of the driver":
                self.ensure_connection()
                return self.connection.execute("SELECT 1")
            return Bare()

    def work():
        hygiene.CALL_HYGIENE.enter()
        connections["default"] = Wrapper(connection.settings_dict, "default")
        ask()
        assert connection.chunked_cursor().fetchone() == (1,)
        hygiene.CALL_HYGIENE.leave()

    in_thread(work)


def test_cursors_of_a_connection_that_was_lent_are_closed_where_it_belongs():
    """As a server within a test borrows that of the test."""

    def borrow(lent):
        connections["default"] = lent
        look()
        ask()
        hygiene.CALL_HYGIENE.leave()

    def work():
        ask()
        its_own = connections["default"]
        its_own.inc_thread_sharing()
        borrower = threading.Thread(target=borrow, args=[its_own])
        borrower.start()
        borrower.join()
        its_own.dec_thread_sharing()
        cursor = open_cursor()
        cursor.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            cursor.cursor.fetchone()

    in_thread(work)


@pytest.mark.parametrize("takes", ["another is put there", "it is deleted"])
def test_a_connection_that_is_put_back_is_looked_after_again(takes):
    def work():
        ask()
        hygiene.CALL_HYGIENE.enter()
        its_own = connections["default"]
        if takes == "it is deleted":
            del connections["default"]
        else:
            connections["default"] = its_own.copy()
        ask()
        connections["default"].connection.close()  # it is in memory
        connections["default"] = its_own
        its_own.connection.close()
        its_own.connection = None
        ask()
        its_own.set_autocommit(False)
        hygiene.CALL_HYGIENE.leave()
        hygiene.CALL_HYGIENE.enter()
        assert its_own in held_connections.thread.held.connections
        assert its_own.get_autocommit()
        hygiene.CALL_HYGIENE.leave()

    in_thread(work)


def test_a_mock_that_claims_to_be_a_hook_stays():
    def work():
        hygiene.CALL_HYGIENE.enter()
        with mock.patch.object(connections["default"], "connect", autospec=True) as connect:
            connections["default"].connect()
        assert len(connect.mock_calls) == 1
        hygiene.CALL_HYGIENE.leave()

    in_thread(work)


def test_what_somebody_has_put_in_the_place_of_a_method_stays():
    """A function of theirs, bound to the connection, as well."""

    def work():
        asked = []

        def connect(self):
            asked.append(self)
            DatabaseWrapper.connect(self)

        its_own = connections["default"]
        its_own.connect = MethodType(connect, its_own)
        ask()
        its_own.connection.close()
        its_own.connection = None
        ask()
        return asked == [its_own] * 2

    assert in_thread(work)


class SlottedWrapper(DatabaseWrapper):
    """A backend with some of its state in slots."""

    __slots__ = ("extra",)


class TracedWrapper(DatabaseWrapper):
    """What a tool makes of a connection."""


class OtherWrapper(DatabaseWrapper):
    """A backend whose methods have arguments of their own."""

    asked: ClassVar[list[int]] = []

    def connect(self, retries=1):
        self.asked.append(retries)
        super(self.__class__, self).connect()

    def ensure_connection(self):
        if self.connection is None:
            self.connect(retries=3)


def test_methods_of_a_backend_may_have_arguments_of_their_own():
    def work():
        connections["default"] = OtherWrapper(connections["default"].settings_dict, "default")
        ask()
        return OtherWrapper.asked

    assert in_thread(work) == [3]


@pytest.mark.parametrize("attributes", [{}, {"allow_thread_sharing": False}])
def test_what_is_no_connection_in_the_place_of_one_is_left_alone(attributes):
    asked = []
    stand_in = SimpleNamespace(
        **attributes, close_if_unusable_or_obsolete=lambda: asked.append(True)
    )

    def work():
        connections["other"] = stand_in
        for _ in range(2):
            hygiene.CALL_HYGIENE.enter()
            ask()
            hygiene.CALL_HYGIENE.leave()
        assert connections["other"] is stand_in
        assert asked, "as by Django's receivers"
        del connections["other"]

    in_thread(work)


def test_a_block_that_is_left_to_a_database_in_memory_is_rolled_back():
    """Django does not close that: it would be gone."""

    def is_there():
        tables = connection.introspection.table_names()
        return "left" in tables

    def work():
        ask()
        blocks = type(connection.atomic_blocks)
        hygiene.CALL_HYGIENE.enter()
        assert connection.is_in_memory_db()
        transaction.atomic().__enter__()
        connection.cursor().execute("CREATE TABLE left (id INTEGER)")
        assert is_there()
        hygiene.CALL_HYGIENE.leave()
        assert not is_there()
        with transaction.atomic():
            ask()
        assert connection.get_autocommit()
        assert type(connection.atomic_blocks) is blocks

    in_thread(work)


def lazy(connection):
    """A proxy that `isinstance` takes for a connection."""
    return SimpleLazyObject(lambda: connection)


@pytest.mark.parametrize("proxy", [Forwarding, lazy])
@pytest.mark.parametrize("is_calls", [True, False])
def test_a_thread_whose_connection_is_behind_a_proxy(proxy, is_calls):
    """As what watches queries puts there: calls of all kinds go on to be served."""

    def use():
        if is_calls:
            hygiene.CALL_HYGIENE.enter()
        for _ in range(2):
            open_cursor().close()
            with transaction.atomic():
                open_cursor().close()
            hygiene.close_old_connections()
            hygiene.reset_queries()
        if is_calls:
            hygiene.CALL_HYGIENE.leave()

    def run():
        use()
        opened = connections["default"]
        connections["default"] = proxy(opened)
        connection_created.send(type(opened), connection=opened)  # as it opens once more
        use()
        loop_calls.current_call.set(loop_calls.LoopCall())
        use()

    in_thread(run)


def open_cursor():
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT 1 UNION SELECT 2")
    return cursor


def test_a_cursor_that_another_thread_closes_waits_for_its_own():
    """As the garbage collector does with what a cancelled `aiterator` leaves."""

    def end():
        connection.connection.close()  # Django leaves in-memory databases open

    with ThreadPoolExecutor(1) as home:
        home.submit(hygiene.CALL_HYGIENE.start).result()
        cursor = home.submit(open_cursor).result()
        assert home.submit(cursor.fetchone).result() == (1,)
        cursor.close()
        assert home.submit(cursor.fetchone).result() == (2,)  # it is still open
        home.submit(hygiene.close_old_connections).result()
        with pytest.raises(DatabaseError, match="closed cursor"):
            home.submit(cursor.fetchone).result()
        another = home.submit(open_cursor).result()
        home.submit(another.close).result()
        with pytest.raises(DatabaseError, match="closed cursor"):
            home.submit(another.fetchone).result()
        home.submit(end).result()


def test_a_cursor_of_a_connection_that_has_gone_is_not_closed_on_the_next_one():
    """It may be in a pool by now, or another thread's."""

    def reopen():
        connection.connection.close()  # Django leaves in-memory databases open
        connection.connection = None
        connection.ensure_connection()
        hygiene.close_old_connections()

    with ThreadPoolExecutor(1) as home:
        home.submit(hygiene.CALL_HYGIENE.start).result()
        cursor = home.submit(open_cursor).result()
        asked = []
        left = SimpleNamespace(close=lambda: asked.append(True))
        cursor.close = functools.partial(
            cursor.close.func, lambda: None, dataclasses.replace(cursor.close.args[1], cursor=left)
        )
        cursor.close()
        home.submit(reopen).result()
        assert not asked
        home.submit(lambda: connection.connection.close()).result()


def test_a_cursor_that_is_collected_at_home_waits_too():
    """The collector may come by inside of a statement, whose lock the driver holds."""

    def collect():
        gc.collect()
        return cursor.fetchone()

    with ThreadPoolExecutor(1) as home:
        home.submit(hygiene.CALL_HYGIENE.start).result()
        cursor = home.submit(leave_half_read).result()
        assert home.submit(collect).result()
        home.submit(hygiene.close_old_connections).result()
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            home.submit(cursor.fetchone).result()
        home.submit(lambda: connection.connection.close()).result()


def test_cursors_that_are_left_do_not_become_many_in_a_long_call():
    with ThreadPoolExecutor(1) as home:
        home.submit(hygiene.CALL_HYGIENE.enter).result()
        first = home.submit(open_cursor).result()
        first.close()
        home.submit(open_cursor).result().close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            first.cursor.fetchone()
        home.submit(hygiene.CALL_HYGIENE.leave).result()
        home.submit(lambda: connection.connection.close()).result()


def test_cursors_that_are_left_do_not_become_many_without_autocommit(monkeypatch):
    """Django knows of no end of a transaction there."""
    monkeypatch.setitem(connections.settings["default"], "AUTOCOMMIT", False)

    def work():
        hygiene.CALL_HYGIENE.start()
        cursor = open_cursor()
        home = held_connections.thread.held.home
        home.left.append(cursor.close.args[1])
        open_cursor().close()
        assert not home.left

    in_thread(work)


def test_a_cursor_of_a_transaction_is_closed_within_no_other():
    """PostgreSQL has ended it by then: to close it would be an error, and end the other one too."""

    def work():
        hygiene.CALL_HYGIENE.start()
        with transaction.atomic():
            cursor = open_cursor()
        left = cursor.close.args[1]
        cursors_of_thread = held_connections.thread.held.home.left
        cursors_of_thread.append(left)  # as the garbage collector does
        with transaction.atomic():
            open_cursor().close()
            assert cursor.cursor.fetchone() == (1,)
        open_cursor().close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            cursor.cursor.fetchone()

    in_thread(work)


class Closings:
    """What has been done to this thread's connection, which stays open."""

    def __init__(self):
        connection.ensure_connection()
        connection.close_at = 0  # it is old
        connection.close = lambda: self.list.append("closed")
        self.list = []


def test_an_error_ends_no_connection_that_others_use_for_its_age():
    def work():
        closings = Closings()
        connection.errors_occurred = True
        hygiene.close_old_connections(is_used=True)
        hygiene.close_old_connections(is_used=True)
        assert closings.list == []
        hygiene.close_old_connections(is_used=False)
        return closings.list

    assert in_thread(work) == ["closed"]


def test_inside_of_what_hygiene_is_around_no_connection_is_closed():
    """An interceptor's may hold a lock, a setting or rows for the method."""

    def work():
        hygiene.CALL_HYGIENE.enter()
        closings = Closings()
        grpc_request_started.send(None, request=None, context=None)
        grpc_request_finished.send(None, request=None, context=None)
        assert closings.list == []
        hygiene.CALL_HYGIENE.leave()
        return list(closings.list)

    assert in_thread(work) == ["closed"]


def test_a_thread_of_a_servicers_own_keeps_a_connection_that_calls_use():
    """As with `sync_to_async(..., executor=...)`: rows that one reads in pieces."""
    calls = [contextvars.copy_context() for _ in range(3)]
    for call in calls:
        call.run(hygiene.CALL_HYGIENE.begin)
    with ThreadPoolExecutor(1) as own:

        def use(call):
            return own.submit(call.run, lambda: connection.ensure_connection()).result()

        use(calls[0])
        closings = own.submit(calls[0].run, Closings).result()
        use(calls[1])
        use(calls[0])
        calls[1].run(hygiene.CALL_HYGIENE.end)
        use(calls[2])
        assert closings.list == []
        calls[0].run(hygiene.CALL_HYGIENE.end)
        calls[2].run(hygiene.CALL_HYGIENE.end)
        fourth = contextvars.copy_context()
        fourth.run(hygiene.CALL_HYGIENE.begin)
        use(fourth)
        assert closings.list == ["closed"]
        fourth.run(hygiene.CALL_HYGIENE.end)
        own.submit(lambda: connection.connection.close()).result()


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "opened by the next call"])
def test_a_transaction_that_a_call_has_left_on_another_database(is_open, monkeypatch):
    """Of a thread of a servicer's own; the next call there asks another database first."""
    monkeypatch.setitem(connections.settings, "other", connections.settings["default"])

    def leave():
        if is_open:
            connections["other"].ensure_connection()
        transaction.atomic().__enter__()
        return connection.in_atomic_block

    def use_other():
        connections["other"].ensure_connection()
        return connection.in_atomic_block

    first, second = contextvars.copy_context(), contextvars.copy_context()
    with ThreadPoolExecutor(1) as own:
        first.run(hygiene.CALL_HYGIENE.begin)
        assert own.submit(first.run, leave).result()
        first.run(hygiene.CALL_HYGIENE.end)
        second.run(hygiene.CALL_HYGIENE.begin)
        assert not own.submit(second.run, use_other).result()
        own.submit(second.run, lambda: connection.ensure_connection()).result()
        second.run(hygiene.CALL_HYGIENE.end)
        own.submit(lambda: [connections[it].connection.close() for it in connections]).result()


def test_cursors_are_closed_before_their_connection_goes_back_to_its_pool():
    def leave_open():
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT 1")
        connection.close_at = 0
        connection.close = lambda: states.append(is_open(cursor))  # as with a pool: it lives on
        return cursor

    def is_open(cursor):
        try:
            cursor.cursor.fetchone()
        except sqlite3.ProgrammingError:
            return False
        return True

    states = []
    with ThreadPoolExecutor(1) as home:
        home.submit(hygiene.CALL_HYGIENE.start).result()
        cursor = home.submit(leave_open).result()
        home.submit(hygiene.close_old_connections).result()
        assert states == [False]
        home.submit(cursor.close).result()
        home.submit(lambda: connection.connection.close()).result()


LAZY = """
import sys, unittest
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django_grpc"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

from django.db import connection
from django.test import SimpleTestCase
from django.test.runner import DiscoverRunner

class Test(SimpleTestCase):
    def test(self):
        import django_grpc.signals
        with self.assertRaisesMessage(AssertionError, "queries"):
            connection.chunked_cursor()

suite = unittest.defaultTestLoader.loadTestsFromTestCase(Test)
sys.exit(not DiscoverRunner().run_suite(suite).wasSuccessful())
"""


def test_an_import_in_a_test_that_allows_no_queries():
    command = [sys.executable, "-c", LAZY]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr


INTERRUPTED_COLLECTIONS = """
import gc, signal
from django.conf import settings
settings.configure()
import django_grpc.signals

class Interrupted(Exception):
    pass

def interrupt(number, frame):
    global is_due
    is_due = False
    raise Interrupted

signal.signal(signal.SIGALRM, interrupt)
lost = 0
for _ in range(20):
    is_due = True
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while is_due:
            gc.collect()
        lost += 1
    except Interrupted:
        pass
print(lost)
"""


def test_a_signal_amid_a_collection_is_not_lost():
    """What its handler raises, as for Ctrl-C and time limits, would go nowhere in a callback of the
    collector's that is written in Python."""
    command = [sys.executable, "-c", INTERRUPTED_COLLECTIONS]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.stderr == ""
    assert completed.stdout == "0\n"


def test_a_cursor_of_a_thread_that_nobody_tends_is_closed_at_once():
    """As without a server: a consumer that imports the signals, or a pool of a servicer's own."""

    with ThreadPoolExecutor(1) as home:
        home.submit(hygiene.close_old_connections).result()
        cursor = home.submit(open_cursor).result()
        cursor.close()
        with pytest.raises(DatabaseError, match="closed cursor"):
            home.submit(cursor.fetchone).result()
        home.submit(lambda: connection.connection.close()).result()
