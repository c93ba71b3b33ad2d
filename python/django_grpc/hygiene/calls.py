"""What is put around calls, and what the signals do for those that run on loops."""

import functools
from collections.abc import Callable, Collection, Iterable

from django_grpc.hygiene import sync_thread
from django_grpc.hygiene.held_connections import close_old_connections, thread
from django_grpc.hygiene.loop_calls import LoopCall, current_call
from django_grpc.hygiene.used_caches import are_caches_used, close_used_caches


def has_async_work(functions: Collection[Callable[[], None]]) -> bool:
    """Whether `run_async` has something to do: a coroutine costs more than asking."""
    call = current_call.get()
    if call is None or call.uses_database:
        return True
    return close_used_caches in functions and are_caches_used()


async def run_async(functions: Collection[Callable[[], None]], *, is_start: bool) -> None:
    """Do what functions of `hygiene` do for a call on a loop.

    Args:
        functions: The functions.
        is_start: As `stop_using` takes it.
    """
    call = current_call.get()
    if call is None:  # not one of a server's
        await sync_thread.run_on_sync_thread(functools.partial(_run_all, functions))
        return
    if call.uses_database and stop_using(is_start=is_start):
        # Waited for: whoever has the answer finds the connection closed, if it is to be.
        await sync_thread.run_on_sync_thread(close_old_connections)
    if close_used_caches in functions and are_caches_used():
        await sync_thread.run_on_sync_thread(close_used_caches)


def stop_using(*, is_start: bool) -> bool:
    """Have the call on a loop that this is called in use no connection, until its next query.

    Args:
        is_start: Whether its method has yet to begin.

    Returns:
        Whether it does: what is around the method may have something to go on with, as rows that an
        interceptor reads. Then its connection is seen to when the call ends.
    """
    call = current_call.get()
    if call is None:
        return False
    if call.uses_database and is_start:
        call.is_used_around = True
    if not call.is_used_around:
        call.forget_use()
    return not call.is_used_around


def _run_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


class CallHygiene:
    """What is put around everything that runs for a call; `django_grpc.engine.types.Surroundings`.

    None of it waits for anything but the database whose connection is in doubt.
    """

    def start(self) -> None:
        """Note that calls run on this thread from their first line to their last."""
        thread.is_calls = thread.held.home.is_tended = True

    def enter(self) -> None:
        """See to the connections of a thread that is about to run code of a call."""
        thread.is_calls = thread.held.home.is_tended = True
        close_old_connections()
        thread.is_entered = True

    def leave(self) -> None:
        """See to what that code has left behind."""
        thread.is_entered = False
        close_old_connections()
        close_used_caches()

    def begin(self) -> None:
        """See to the connections that a call on a loop may come to use."""
        current_call.set(LoopCall())
        sync_thread.look_at_begin()

    def end(self) -> None:
        """See to what the call has left behind."""
        call = current_call.get()
        if call is not None:
            call.has_ended = True
            call.forget_use()
        sync_thread.look_at_end()


CALL_HYGIENE = CallHygiene()
