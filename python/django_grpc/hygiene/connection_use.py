"""Who uses a connection on a thread of no call's own, and what that thread is to see to before.

Everything that uses a connection calls its ``ensure_connection`` first, also what sends nothing yet
as `transaction.atomic`. So a call that comes to use one is noted there.

The ends of calls do not reach threads that servicers start, as `asyncio.to_thread` does. What these
hold is looked after there too, when the next call comes to use one.
"""

from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from django_grpc.hygiene.atomic_blocks import AtomicBlocks, LostBlocks
from django_grpc.hygiene.connection_state import is_proxy
from django_grpc.hygiene.held_connections import (
    HeldConnections,
    close_old_connections,
    end_transaction,
    thread,
    watchers,
)
from django_grpc.hygiene.hooks import hook
from django_grpc.hygiene.loop_calls import LoopCall, current_call
from django_grpc.hygiene.sync_thread import tidy_soon


def watch(connection: BaseDatabaseWrapper) -> None:
    """Have a connection say who uses it, unless it is on a thread that calls run on."""
    if thread.is_calls or is_proxy(connection):
        return
    held = thread.held
    lost = held.lost_on(connection)
    for name, function in _HOOKS.items():
        hook(connection, name, function, lost)
    if not isinstance(connection.atomic_blocks, AtomicBlocks):
        connection.atomic_blocks = AtomicBlocks(lost, connection.atomic_blocks)
    if connection.connection is None:  # Django has just made it, and nobody uses it yet
        return
    call = note_use()
    if call is not None and not held.is_of_sync_to_async:
        _take_over(held, call)
    held.note_owner(connection, call)


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


def _ensure_connection(
    connection: BaseDatabaseWrapper, proceed: Callable[[], Any], lost: LostBlocks
) -> Any:
    """Note who uses a connection, look after it, and do what its backend does."""
    held, call = thread.held, note_use()
    lost.ends_whole = False  # where neither a commit nor a rollback came after a block
    lost.refuse(call)
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
    held.note_owner(connection, call)
    return proceed()


def _commit(_: BaseDatabaseWrapper, proceed: Callable[[], Any], lost: LostBlocks) -> Any:
    """Do what a backend does, unless what is to be committed is there no more.

    It is left by the rollback that follows, which `transaction.atomic` sees to.
    """
    if not lost.ends_whole:
        lost.refuse(current_call.get(), is_commit=True)
    returned = proceed()  # should it fail, its rollback follows
    lost.ends_whole = False
    return returned


def _rollback(_: BaseDatabaseWrapper, proceed: Callable[[], Any], lost: LostBlocks) -> Any:
    """Do what a backend does, unless that was done, and what is open is others'."""
    if not lost.ends_whole and lost.leave(current_call.get()):
        return None
    lost.ends_whole = False
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
    left = [it for it in held.connections if held.is_left_to(it, call)]
    for connection in left:
        end_transaction(connection)
    return left


_HOOKS = {"ensure_connection": _ensure_connection, "commit": _commit, "rollback": _rollback}

watchers.append(watch)
for _opened in thread.held.connections:
    if _opened.connection is not None:  # of the thread that imports this
        watch(_opened)
