"""The thread of `sync_to_async`, which the ORM of async methods runs on, for all calls in turn.

A call that uses no database never waits for it, whatever the others do there: what has to be done
is put into its queue, before what the call may put there itself.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import sys
from collections.abc import Callable
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async

from django_grpc.context_variables import adopt
from django_grpc.hygiene.connection_state import has_transaction, is_obsolete, is_suspect
from django_grpc.hygiene.held_connections import (
    HeldConnections,
    close_old_connections,
    orphans,
    thread,
)
from django_grpc.hygiene.loop_calls import users
from django_grpc.logs import GuardedLogger
from django_grpc.shortage import NoThreadError, is_refusal

logger = GuardedLogger("django_grpc")

# What the thread has; None as long as no call has asked. The first one does, before any code of it
# runs, so that the question is in the thread's queue before all that calls put there: whichever
# thread opens a connection for a call while there is no answer is another one.
_held: HeldConnections | None = None

# Whether `_tidy` waits in the thread's queue.
_is_tidying = False


def look_at_begin() -> None:
    """Have the thread looked after as a call begins that may come to use it, and do not wait."""
    if orphans:
        tidy_soon()
    if _held is None:
        tidy_soon()
    elif _held.connections:
        if not users:
            for connection in _held.own:
                connection.queries_log.clear()
        _look(_held, at_begin=True)


def look_at_end() -> None:
    """Have the thread looked after as a call ends, and do not wait."""
    if orphans:
        tidy_soon()
    if _held is not None and _held.connections:
        _look(_held, at_begin=False)


def _look(held: HeldConnections, *, at_begin: bool) -> None:
    """Have what needs it looked after.

    Nothing of the connections is changed here: the thread may be in the middle of opening one.
    """
    if _is_tidying:
        return None
    if held.is_doubtful() or held.home.left:
        return tidy_soon()
    for connection in held.own:
        if connection.connection is None and not connection.in_atomic_block:
            if connection.errors_occurred and connection.alias in held.opened:
                return tidy_soon()
            continue
        if has_transaction(connection):
            if held.is_in_hands(connection):
                continue
            return tidy_soon()
        if (
            is_suspect(connection)
            or (is_obsolete(connection) and not users)
            or (at_begin and _was_checked(connection))
        ):
            return tidy_soon()


def _was_checked(connection: Any) -> bool:
    """Whether its next query would not ask first whether it is alive, though it is to."""
    return bool(connection.health_check_enabled and connection.health_check_done)


def tidy_soon() -> None:
    """Have the thread see to its connections once it has done what it was given until now."""
    global _is_tidying, _held
    if not _is_tidying:
        _is_tidying = True
        try:
            SyncToAsync.single_thread_executor.submit(_tidy)
        except RuntimeError:  # no thread can be started, or the interpreter ends
            _is_tidying = False
            _held = None


def _tidy() -> None:
    global _is_tidying, _held
    _is_tidying = False
    _held = held = thread.held
    held.is_of_sync_to_async = held.home.is_tended = True
    try:
        close_old_connections()
    except Exception:
        logger.exception("Cannot close a database connection")


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
