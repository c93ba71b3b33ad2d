"""Who uses a connection on a thread of no call's own, and what that thread is to see to before.

Everything that uses a connection calls its ``ensure_connection`` first, also what sends nothing yet
as `transaction.atomic`. So a call that comes to use one is noted there.

The ends of calls do not reach threads that servicers start, as `asyncio.to_thread` does. What these
hold is looked after there too, when the next call comes to use one.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError
from django.db.utils import load_backend

from django_grpc.hygiene.atomic_blocks import AtomicBlocks
from django_grpc.hygiene.connection_record import real, record_for
from django_grpc.hygiene.held_connections import (
    HeldConnections,
    close_old_connections,
    end_transaction,
    thread,
)
from django_grpc.hygiene.hooks import hook, watch_class
from django_grpc.hygiene.loop_calls import LoopCall, current_call
from django_grpc.hygiene.sync_thread import tidy_soon


def note_use() -> LoopCall | None:
    """Note that the call which the code that runs now belongs to uses the database.

    Returns:
        The call, None where it is none of a server's.
    """
    call = current_call.get()
    if call is None:
        return None
    call.use_database()
    if call.has_ended:  # perhaps just now: its end has not seen to what is used here
        tidy_soon()
    return call


def _ensure_connection(connection: BaseDatabaseWrapper, proceed: Callable[[], Any]) -> Any:
    """Note who uses a connection, look after it, and do what its backend does."""
    held, call = thread.held, note_use()
    record = record_for(connection, held.home)
    if record is None:
        return proceed()
    if not isinstance(connection.atomic_blocks, AtomicBlocks):
        connection.atomic_blocks = AtomicBlocks(record.lost, connection.atomic_blocks)
    record.lost.ends_whole = False  # where neither a commit nor a rollback came after a block
    record.lost.refuse(call)
    is_another = not held.is_of_sync_to_async and call is not held.last_call
    if is_another or (held.home.is_tended and held.is_left_to(connection, call)):
        is_used = held.are_in_use()
        if connection in _take_over(held, call):
            # It may be `atomic` that asks, and believes by now that it is inside of another one.
            raise TransactionManagementError(
                "A call before this one has ended inside of transaction.atomic() on this thread; "
                "that is rolled back now."
            )
        if is_another and not connection.in_atomic_block:
            close_old_connections(is_used=is_used)
            connection.close_if_health_check_failed()
    held.note_owner(record, call)
    is_opening = connection.connection is None
    returned = proceed()
    if is_opening:
        held.note_owner(record, call)  # Django calls what is closed not committed
        if not isinstance(connection.atomic_blocks, AtomicBlocks):
            connection.atomic_blocks = AtomicBlocks(record.lost)
    return returned


def _commit(connection: BaseDatabaseWrapper, proceed: Callable[[], Any]) -> Any:
    """Do what a backend does, unless what is to be committed is there no more.

    It is left by the rollback that follows, which `transaction.atomic` sees to.
    """
    record = record_for(connection, thread.held.home)
    if record is None:
        return proceed()
    if not record.lost.ends_whole:
        record.lost.refuse(current_call.get(), is_commit=True)
    returned = proceed()  # should it fail, its rollback follows
    record.lost.ends_whole = False
    return returned


def _rollback(connection: BaseDatabaseWrapper, proceed: Callable[[], Any]) -> Any:
    """Do what a backend does, unless that was done, and what is open is others'."""
    record = record_for(connection, thread.held.home)
    if record is None:
        return proceed()
    if not record.lost.ends_whole and record.lost.leave(current_call.get()):
        return None
    record.lost.ends_whole = False
    return proceed()


def _take_over(held: HeldConnections, call: LoopCall | None) -> list[BaseDatabaseWrapper]:
    """Have another call use the connections of a thread of no call's own.

    Returns:
        Those with a transaction that a call before it has left at its end: it is rolled back.
    """
    if not held.is_of_sync_to_async:
        held.last_call = call
        for other in list(held.calls):
            if other.has_ended:
                held.calls.discard(other)
        if call is not None:
            # From now on the thread looks after its connections, as calls come to use them.
            held.home.is_tended = True
            held.calls.add(call)
    left = [real(it) for it in held.own if held.is_left_to(it, call)]
    for connection in left:
        end_transaction(connection)
    return left


def _watch_backends() -> None:
    """Watch the classes of the databases in the settings, before their first connections open."""
    for alias in connections:
        with contextlib.suppress(Exception):  # one that can't be imported, which nobody may use
            watch_class(load_backend(connections.settings[alias]["ENGINE"]).DatabaseWrapper)
    for connection in thread.held.own:  # of the thread that imports this
        watch_class(type(real(connection)))
        if connection.connection is not None:
            record_for(real(connection), thread.held.home)


def _is_of_no_calls() -> bool:
    return not thread.is_calls


hook("ensure_connection", _ensure_connection, applies=_is_of_no_calls)
hook("commit", _commit, applies=_is_of_no_calls)
hook("rollback", _rollback, applies=_is_of_no_calls)
_watch_backends()
