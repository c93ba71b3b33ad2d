"""What is put around calls, and what the signals do for those that run on loops."""

import functools
from collections.abc import Callable, Collection, Iterable

from django_grpc.hygiene import sync_thread
from django_grpc.hygiene.held_connections import close_old_connections, thread
from django_grpc.hygiene.loop_calls import LoopCall, current_call
from django_grpc.hygiene.used_caches import are_caches_used, close_used_caches


def has_async_work(functions: Collection[Callable[[], None]]) -> bool:
    """Whether `run_async` has something to do: a coroutine costs more than asking."""
    return current_call.get() is None or (close_used_caches in functions and are_caches_used())


async def run_async(functions: Collection[Callable[[], None]]) -> None:
    """Do what functions of `hygiene` do for code on a loop.

    Connections of a call's are seen to when it begins and ends. Amid it something else of the call
    may use them, as what is around its method or a task beside it.
    """
    if current_call.get() is None:  # not one of a server's
        await sync_thread.run_on_sync_thread(functools.partial(_run_all, functions))
    elif close_used_caches in functions and are_caches_used():
        await sync_thread.run_on_sync_thread(close_used_caches)


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
            call.end()
        sync_thread.look_at_end()


CALL_HYGIENE = CallHygiene()
