"""What Django's stock request receivers do, at a price that fits a call of some 20 µs.

``reset_queries``, ``close_old_connections`` and ``close_caches`` walk every configured alias each
time, through ``asgiref.local.Local``: 5 to 7 µs for each receiver with one alias. The functions
here do the same work for what the thread really holds.

The signals run them around servicers' methods. `CallHygiene` is put around everything else that
runs for a call: interceptors, handlers that they make, callbacks, receivers.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async
from django.core.cache import caches, close_caches
from django.core.cache.backends.base import BaseCache
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError
from django.utils.module_loading import import_string

from django_grpc.logs import GuardedLogger
from django_grpc.shortage import NoThreadError, is_refusal
from django_grpc.signals import cursors
from django_grpc.variables import adopt

logger = GuardedLogger("django_grpc")


# How many connections, of any thread, turned out to be dead. A database that drops one mostly drops
# all: the others are asked then, so that a restart does not cost a failed call for each of them.
_deaths = 0


class _Shared:
    """The connections of one thread, for another one to look at."""

    connections: tuple[BaseDatabaseWrapper, ...] = ()

    def __init__(self) -> None:
        #: The number of deaths when the connections were looked at last.
        self.deaths = _deaths
        #: On a thread that a servicer has started: the calls that have used them, and the last.
        self.calls: weakref.WeakSet[_LoopCall] = weakref.WeakSet()
        self.last_call: _LoopCall | None = None
        #: For cursors of the connections that other threads come to close.
        self.home = cursors.Home()


class _ThreadConnections(threading.local):
    """The database connections that the stock receivers would visit on this thread.

    A connection that is not open is nothing to those receivers, and one that opens says so by
    ``connection_created`` on the thread that opened it: the tuple is taken then, and when a thread
    asks for the first time.
    """

    #: Whether calls run on the thread from their first line to their last, so that their ends are
    #: the times to look after its connections.
    is_calls = False

    #: Whether `CallHygiene` is around what runs. On a thread of calls the signals are else the
    #: first and the last of a call.
    is_entered = False

    def __init__(self) -> None:
        self.shared = _Shared()
        for alias in connections:  # before the first query, which may be for a cursor that stays
            with contextlib.suppress(Exception):  # of settings that Django refuses
                cursors.close_at_home(connections[alias], self.shared.home)
        self.refresh()

    def refresh(self) -> None:
        # A connection that is shared between threads (inc_thread_sharing, which only tests call)
        # is its owner's to close: it carries the transaction of the test.
        self.shared.connections = tuple(
            connection
            for connection in connections.all(initialized_only=True)
            if not connection.allow_thread_sharing
        )


_thread = _ThreadConnections()


def _remember_connections(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    _thread.refresh()
    shared, call = _thread.shared, _call.get()
    cursors.close_at_home(connection, shared.home)
    if _thread.is_calls:
        return
    if _execute not in connection.execute_wrappers:
        # At the beginning: who leaves a `with connection.execute_wrapper(...)` takes the last away.
        connection.execute_wrappers.insert(0, _execute)
    _note_use()
    if call is not None:
        # From now on the thread looks after its connections, as calls come to use them.
        shared.home.is_tended = True
        if call is not shared.last_call and shared is not _sync_thread:
            _change_call(shared, call)
        shared.calls.add(call)
        if "ensure_connection" not in vars(connection):
            connection.ensure_connection = functools.partial(  # type: ignore[method-assign]
                _ensure_connection, weakref.ref(connection)
            )


connection_created.connect(
    _remember_connections, dispatch_uid="django_grpc.signals.hygiene.connections"
)


def reset_queries() -> None:
    """Do what ``django.db.reset_queries`` does, unless other calls use the connections."""
    if _users and _may_be_used_by_others():
        return
    for connection in _thread.shared.connections:
        connection.queries_log.clear()


_stock_rule = BaseDatabaseWrapper.close_if_unusable_or_obsolete


def close_old_connections(*, is_used: bool | None = None) -> None:
    """Do what ``django.db.close_old_connections`` does, and ask those that may have died too.

    Nothing inside of what `CallHygiene` is around: that sees to the connections before and after,
    and what is around a method may have something to go on with, as a transaction or a lock.

    Args:
        is_used: Whether other calls use the connections, which are not ended by their age then.
            Default: what is known of it.
    """
    if _thread.is_entered:
        return
    shared = _thread.shared
    if shared.home.left:
        shared.home.close_left()
    if not shared.connections:
        return
    if is_used is None:
        is_used = bool(_users) and _may_be_used_by_others()
    is_doubtful = shared.deaths != _deaths
    shared.deaths = _deaths
    for connection in shared.connections:
        if connection.connection is None:
            continue
        # The conditions of close_if_unusable_or_obsolete(), asked beforehand because the method
        # costs three times as much; those of `_is_suspect` and `_is_obsolete`, in line because each
        # call has this done to it twice.
        if (
            not is_doubtful
            and not connection.errors_occurred
            and connection.autocommit == connection.settings_dict["AUTOCOMMIT"]
            and not connection.in_atomic_block
            and (connection.close_at is None or is_used or time.monotonic() < connection.close_at)
            and type(connection).close_if_unusable_or_obsolete is _stock_rule
        ):
            connection.health_check_done = False  # type: ignore[attr-defined] # not in its stubs
        else:
            _apply_rule(connection, is_doubtful=is_doubtful, is_used=is_used)


def _apply_rule(connection: BaseDatabaseWrapper, *, is_doubtful: bool, is_used: bool) -> None:
    """Have Django's rule decide about a connection, unless only its age would end it."""
    global _deaths
    if connection.in_atomic_block:
        if _thread.is_calls:
            _end_transaction(connection)
            return
        if _thread.shared.last_call is not None and _thread.shared is not _sync_thread:
            return  # that of a call which uses the thread, too: see `_change_call`
    had_errors = connection.errors_occurred
    if is_doubtful:
        connection.errors_occurred = True  # Django's rule asks whether it is usable then
    if not _is_suspect(connection) and (is_used or not _is_obsolete(connection)):
        connection.health_check_done = False  # type: ignore[attr-defined] # not in its stubs
        return
    age_ends_at = connection.close_at
    if is_used:
        connection.close_at = None  # for Django's rule, which asks for both
    elif _is_obsolete(connection):
        _thread.shared.home.close_all(connection)
    connection.close_if_unusable_or_obsolete()
    connection.close_at = age_ends_at  # of one that has been closed nobody asks
    if had_errors and connection.connection is None:
        _deaths += 1  # or it was too old, too: then the others are asked for nothing


def _end_transaction(connection: BaseDatabaseWrapper) -> None:
    """Roll back what a call that has ended left in `transaction.atomic`, and close the connection.

    Closed alone, it would refuse all that comes until the block is left, which nobody does.
    """
    logger.error(
        "A call has ended inside of transaction.atomic() on the database %r: the transaction is "
        "rolled back, and the connection closed.",
        connection.alias,
    )
    is_closed = connection.closed_in_transaction
    connection.in_atomic_block = connection.closed_in_transaction = False
    if is_closed:
        connection.connection = None  # as Django does it when the block is left
    else:
        _thread.shared.home.close_all(connection)
        connection.close()


def _is_suspect(connection: BaseDatabaseWrapper) -> bool:
    """Whether the rule of an open connection has to be asked, whatever its age.

    Always for a backend that has a rule of its own.
    """
    return (
        connection.errors_occurred
        or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
        or type(connection).close_if_unusable_or_obsolete is not _stock_rule
    )


def _is_obsolete(connection: BaseDatabaseWrapper) -> bool:
    return connection.close_at is not None and time.monotonic() >= connection.close_at


# The CACHES setting that was looked at last, and whether a backend of it does something when it is
# closed: most inherit BaseCache.close, which does nothing. One tuple, so that threads which change
# it at once leave a consistent pair.
_cache_knowledge: tuple[object, bool] = (None, True)


def close_used_caches() -> None:
    """Do what ``django.core.cache.close_caches`` does."""
    settings, has_work = _cache_knowledge
    if settings is not caches.settings:  # another object once a test has overridden it
        has_work = _look_at_caches()
    if has_work:
        close_caches()


def _look_at_caches() -> bool:
    global _cache_knowledge
    settings = caches.settings
    has_work = any(_closes(parameters["BACKEND"]) for parameters in settings.values())
    _cache_knowledge = (settings, has_work)
    return has_work


def _closes(backend: str) -> bool:
    """Tell whether caches of a backend do anything at the end of a request.

    One that can't be imported may be one that nobody uses, as `close_caches` has it.
    """
    try:
        return bool(import_string(backend).close is not BaseCache.close)
    except Exception:  # whatever importing it does
        return True


# On an asyncio loop. The ORM of async methods runs on the thread of `sync_to_async`, for all calls
# in turn, and a connection there is used by many calls at once. So
#
# - a call that uses none never waits for that thread, whatever the others do there: what has to be
#   done is put into its queue, before what the call may put there itself;
# - a connection that has become too old is closed when the last call that uses it has ended, lest
#   it be closed between two pages of another call's rows.


class _LoopCall:
    """A call that runs on a loop."""

    has_ended = False
    uses_database = False

    #: Whether what is around its method uses the database.
    is_used_around = False

    #: Made when it comes to use the database, which many a call never does. A call of a loop that
    #: nobody runs any more never ends, and is given up with its task.
    reference: "weakref.ref[_LoopCall] | None" = None


# The call that the code which runs now belongs to. `sync_to_async` takes it along to its thread.
_call: ContextVar[_LoopCall | None] = ContextVar("django_grpc.signals.hygiene.call", default=None)

# Those that have used a connection and not ended. Added to on the threads of the queries, and
# otherwise changed on the loop; each change is one operation of a set.
_users: set[weakref.ref[_LoopCall]] = set()

# What the thread has on which `sync_to_async` runs thread-sensitive code; None as long as no call
# has asked. The first one does, before any code of it runs, so that the question is in that
# thread's queue before all that calls put there: whichever thread opens a connection for a call
# while there is no answer is another one.
_sync_thread: _Shared | None = None

# Whether `_tidy` waits in the queue of that thread.
_is_tidying = False


def _execute(
    execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Note which call uses the connection; a wrapper of Django's, on threads of no call's own."""
    _note_use()
    return execute(sql, params, many, context)


def _ensure_connection(reference: weakref.ref[BaseDatabaseWrapper]) -> None:
    """Look after connections of threads that a servicer starts, as by `asyncio.to_thread`.

    The ends of calls do not reach these, so it is done when the next call comes to use one. Instead
    of `BaseDatabaseWrapper.ensure_connection`, which everything that uses a connection calls first.
    """
    connection = reference()
    if connection is None:
        return
    shared, call = _thread.shared, _call.get()
    if call is not shared.last_call and shared is not _sync_thread:
        ended = _change_call(shared, call)
        is_used = bool(shared.calls)
        if call is not None:
            shared.calls.add(call)
        if connection in ended:
            # It may be `atomic` that asks, and believes by now that it is inside of another one.
            raise TransactionManagementError(
                "A call before this one has ended inside of transaction.atomic() on this thread; "
                "that is rolled back now."
            )
        if not connection.in_atomic_block:
            close_old_connections(is_used=is_used)
            connection.close_if_health_check_failed()
    type(connection).ensure_connection(connection)


def _change_call(shared: _Shared, call: _LoopCall | None) -> list[BaseDatabaseWrapper]:
    """Have another call use the connections of a thread that a servicer has started.

    Returns:
        Those with a transaction that the one before it has left at its end: it is rolled back.
    """
    last_call, shared.last_call = shared.last_call, call
    for other in list(shared.calls):
        if other.has_ended:
            shared.calls.discard(other)
    if last_call is None or not last_call.has_ended:
        return []
    left = [it for it in shared.connections if it.in_atomic_block]
    for connection in left:
        _end_transaction(connection)
    return left


def _note_use() -> None:
    call = _call.get()
    if call is None:
        return
    if not call.uses_database and not call.has_ended:
        call.uses_database = True
        if call.reference is None:
            call.reference = weakref.ref(call, _users.discard)
        _users.add(call.reference)
    if call.has_ended:  # perhaps just now: its end has not seen to what is used here
        _forget_use(call)
        _tidy_soon()


def _forget_use(call: _LoopCall) -> None:
    call.uses_database = False
    if call.reference is not None:
        _users.discard(call.reference)


def _may_be_used_by_others() -> bool:
    """Whether calls on loops may use the connections of this thread, if there are any."""
    # On a thread of calls they are in use by one at a time: the one that asks.
    return not _thread.is_calls


def _look(*, at_begin: bool) -> None:
    """Have the thread of `sync_to_async` looked after, if it needs to be, and do not wait.

    Nothing of its connections is changed here: it may be in the middle of opening one.
    """
    thread = _sync_thread
    if thread is None or not thread.connections:
        return
    if thread.deaths != _deaths or thread.home.left:
        return _tidy_soon()
    for connection in thread.connections:
        # Inside of a transaction nothing is done. One that is under way is none of a call's that
        # begins; a call that was cancelled may leave it behind.
        if connection.connection is None or (at_begin and connection.in_atomic_block):
            continue
        if (
            _is_suspect(connection)
            or (_is_obsolete(connection) and not _users)
            or (at_begin and _was_checked(connection))
        ):
            return _tidy_soon()


def _was_checked(connection: Any) -> bool:
    """Whether its next query would not ask first whether it is alive, though it is to."""
    return bool(connection.health_check_enabled and connection.health_check_done)


def _tidy_soon() -> None:
    global _is_tidying, _sync_thread
    if not _is_tidying:
        _is_tidying = True
        try:
            SyncToAsync.single_thread_executor.submit(_tidy)
        except RuntimeError:  # no thread can be started, or the interpreter ends
            _is_tidying = False
            _sync_thread = None


def _tidy() -> None:
    global _is_tidying, _sync_thread
    _is_tidying = False
    _sync_thread = _thread.shared
    _sync_thread.home.is_tended = True
    try:
        if not _users:
            for connection in _thread.shared.connections:
                if connection.in_atomic_block:
                    _end_transaction(connection)
        close_old_connections()
    except Exception:
        logger.exception("Cannot close a database connection")


def has_async_work(functions: Collection[Callable[[], None]]) -> bool:
    """Whether `run_async` has something to do: a coroutine costs more than asking."""
    call = _call.get()
    if call is None or call.uses_database:
        return True
    return close_used_caches in functions and _are_caches_used()


async def run_async(functions: Collection[Callable[[], None]], *, is_start: bool) -> None:
    """Do what functions of this module do for a call on a loop.

    Args:
        functions: The functions.
        is_start: As `stop_using` takes it.
    """
    call = _call.get()
    if call is None:  # not one of a server's
        await run_on_sync_thread(functools.partial(_run_all, functions))
        return
    if call.uses_database and stop_using(is_start=is_start):
        # Waited for: whoever has the answer finds the connection closed, if it is to be.
        await run_on_sync_thread(close_old_connections)
    if close_used_caches in functions and _are_caches_used():
        await run_on_sync_thread(close_used_caches)


async def run_on_sync_thread(function: Callable[[], object]) -> None:
    """Run a function on the thread of `sync_to_async`, also while an exception is handled.

    asgiref takes that exception along to its thread and raises it there once more, so that its
    traceback leads to a frame that holds it. All the frames of the call that has failed or was
    cancelled would stay until the garbage is collected, and the cursors with them that it reads
    from: which then are closed on whatever thread that is, amid another query even, which psycopg
    waits for for ever. In a task of its own no exception is handled.

    Raises:
        NoThreadError: The system refuses the thread.
        BaseException: What the function raises.
    """
    try:
        if sys.exc_info()[0] is None:
            await _run_on_sync_thread(function)
            return
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        await loop.create_task(_run_on_sync_thread(function), context=context)
        adopt(context)
    except RuntimeError as error:
        if is_refusal(error):
            raise NoThreadError("The server has no thread for what asks the database") from error
        raise


async def _run_on_sync_thread(function: Callable[[], object]) -> None:
    is_in_use = SyncToAsync.deadlock_context.get(False)
    try:
        await sync_to_async(function)()
    except RuntimeError:
        # Where the thread can't be started, asgiref takes it for one in use from then on.
        SyncToAsync.deadlock_context.set(is_in_use)
        raise


def wait_for_sync_thread(timeout: float) -> bool:
    """Wait until the thread of `sync_to_async` has done what it was given until now.

    Args:
        timeout: Seconds, at the most.

    Returns:
        Whether it has.
    """
    with contextlib.suppress(RuntimeError):  # it can't be started, or has been shut down
        turn = SyncToAsync.single_thread_executor.submit(lambda: None)
        return bool(concurrent.futures.wait([turn], timeout).done)
    return True


def stop_using(*, is_start: bool) -> bool:
    """Have the call on a loop that this is called in use no connection, until its next query.

    Args:
        is_start: Whether its method has yet to begin.

    Returns:
        Whether it does: what is around the method may have something to go on with, as rows that an
        interceptor reads. Then its connection is seen to when the call ends.
    """
    call = _call.get()
    if call is None:
        return False
    if call.uses_database and is_start:
        call.is_used_around = True
    if not call.is_used_around:
        _forget_use(call)
    return not call.is_used_around


def _are_caches_used() -> bool:
    settings, has_work = _cache_knowledge
    if settings is not caches.settings:
        has_work = _look_at_caches()
    return has_work and any(True for _ in caches.all(initialized_only=True))


def _run_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


class CallHygiene:
    """What is put around everything that runs for a call; `django_grpc.engine.types.Surroundings`.

    None of it waits for anything but the database whose connection is in doubt.
    """

    def start(self) -> None:
        """Note that calls run on this thread from their first line to their last."""
        _thread.is_calls = _thread.shared.home.is_tended = True

    def enter(self) -> None:
        """See to the connections of a thread that is about to run code of a call."""
        _thread.is_calls = _thread.shared.home.is_tended = True
        close_old_connections()
        _thread.is_entered = True

    def leave(self) -> None:
        """See to what that code has left behind."""
        _thread.is_entered = False
        close_old_connections()
        close_used_caches()

    def begin(self) -> None:
        """See to the connections that a call on a loop may come to use."""
        global _sync_thread
        _call.set(_LoopCall())
        thread = _sync_thread
        if thread is None:
            _sync_thread = _Shared()  # until `_tidy` says which it is
            _tidy_soon()
        elif thread.connections:
            if not _users:
                for connection in thread.connections:
                    connection.queries_log.clear()
            _look(at_begin=True)

    def end(self) -> None:
        """See to what the call has left behind."""
        call = _call.get()
        if call is not None:
            call.has_ended = True
            _forget_use(call)
        _look(at_begin=False)


CALL_HYGIENE = CallHygiene()
