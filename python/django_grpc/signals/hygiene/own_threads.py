"""Connections that open on threads which servicers start, as `asyncio.to_thread` does.

The ends of calls do not reach these threads. So the connections are looked after when the next call
comes to use one: everything that does calls ``ensure_connection`` first.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError

from django_grpc.signals.hygiene.held_connections import (
    HeldConnections,
    close_old_connections,
    end_transaction,
    thread,
)
from django_grpc.signals.hygiene.loop_calls import LoopCall, current_call
from django_grpc.signals.hygiene.sync_thread import tidy_soon


def watch(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """Have a connection say who uses it, if it opens on a thread of no call's own."""
    if thread.is_calls:
        return
    if _execute not in connection.execute_wrappers:
        # At the beginning: who leaves a `with connection.execute_wrapper(...)` takes the last away.
        connection.execute_wrappers.insert(0, _execute)
    note_use()
    held, call = thread.held, current_call.get()
    if call is not None:
        # From now on the thread looks after its connections, as calls come to use them.
        held.home.is_tended = True
        if call is not held.last_call and not held.is_of_sync_to_async:
            _change_call(held, call)
        held.calls.add(call)
        if "ensure_connection" not in vars(connection):
            connection.ensure_connection = functools.partial(  # type: ignore[method-assign]
                _ensure_connection, weakref.ref(connection)
            )


# After `held_connections` has taken it among the thread's.
connection_created.connect(watch, dispatch_uid="django_grpc.signals.hygiene.own_threads")


def note_use() -> None:
    """Note that the call which the code that runs now belongs to uses the database."""
    call = current_call.get()
    if call is None:
        return
    call.use_database()
    if call.has_ended:  # perhaps just now: its end has not seen to what is used here
        tidy_soon()


def _execute(
    execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Note which call uses the connection; a wrapper of Django's."""
    note_use()
    return execute(sql, params, many, context)


def _ensure_connection(reference: weakref.ref[BaseDatabaseWrapper]) -> None:
    """Look after the thread's connections, and do what `BaseDatabaseWrapper` does."""
    connection = reference()
    if connection is None:
        return
    held, call = thread.held, current_call.get()
    if call is not held.last_call and not held.is_of_sync_to_async:
        ended = _change_call(held, call)
        is_used = bool(held.calls)
        if call is not None:
            held.calls.add(call)
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


def _change_call(held: HeldConnections, call: LoopCall | None) -> list[BaseDatabaseWrapper]:
    """Have another call use the connections of a thread that a servicer has started.

    Returns:
        Those with a transaction that the one before it has left at its end: it is rolled back.
    """
    last_call, held.last_call = held.last_call, call
    for other in list(held.calls):
        if other.has_ended:
            held.calls.discard(other)
    if last_call is None or not last_call.has_ended:
        return []
    left = [it for it in held.connections if it.in_atomic_block]
    for connection in left:
        end_transaction(connection)
    return left
