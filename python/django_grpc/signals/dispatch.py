"""A Django signal that is sent twice for every call, and so must cost next to nothing."""

import asyncio
import contextvars
import functools
import weakref
from collections.abc import Awaitable, Callable, Collection
from typing import Any, NamedTuple

import django.core.cache
import django.db
from asgiref.sync import iscoroutinefunction
from django.dispatch import Signal

from django_grpc import hygiene
from django_grpc.context_variables import adopt
from django_grpc.logs import GuardedLogger

logger = GuardedLogger("django_grpc")

# Seconds that a call that was cancelled waits for its receivers; they go on after that, so many.
_SPARED = 5.0
_MOST_LEFT = 1000
_left: set["asyncio.Task[Any]"] = set()

Receiver = Callable[..., Any]

# Django's stock receivers by identity, as a receiver need not be hashable, and the function that
# does the same without arguments.
_STOCK: dict[int, Callable[[], None]] = {
    id(django.db.reset_queries): hygiene.reset_queries,
    id(django.db.close_old_connections): hygiene.close_old_connections,
    id(django.core.cache.close_caches): hygiene.close_used_caches,
}


class _Plan(NamedTuple):
    """What sending to the receivers of one signal comes down to.

    A plan is good for one ``Signal.receivers`` list in one length, so that code which exchanges
    the list (factory_boy's ``mute_signals`` does) or lets it grow is honoured unasked.
    """

    receivers: list[Any]
    length: int
    # When all are stock: what to run, and the answer. None otherwise, as for every other receiver a
    # plan must hold no more than Django's own reference.
    stock: tuple[Callable[[], None], ...] | None
    stock_responses: tuple[tuple[Receiver, None], ...]
    # Otherwise each of them: its reference, and for a stock one what to run instead.
    steps: tuple[tuple[Any, Callable[[], None] | None], ...]
    # Coroutine functions are Django's to run.
    left_to_django: bool


class CallSignal(Signal):
    """A ``django.dispatch.Signal`` whose ``send(None, ...)`` looks its receivers up only once.

    Everything else is Django's, and so are the semantics of ``send``.

    Args:
        afterwards: Functions of `hygiene`, called when receivers that are not Django's own have
            run, whatever they raised.
    """

    _plan: _Plan | None = None

    def __init__(self, afterwards: Collection[Callable[[], None]] = ()) -> None:
        super().__init__()
        self._afterwards = afterwards

    def disconnect(self, *args: Any, **kwargs: Any) -> bool:
        """Disconnect a receiver as ``Signal.disconnect`` does."""
        disconnected = super().disconnect(*args, **kwargs)
        self._plan = None  # before another connect() gives the list its old length again
        return disconnected

    async def asend(self, sender: Any, **named: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers from a coroutine, as Django's `asend` does.

        Ordinary receivers run first, on the thread of `sync_to_async`, then coroutine functions,
        side by side. When the only ordinary ones are Django's own there is mostly nothing for them
        to do, and no other thread is asked.

        A task that is cancelled meanwhile is so once all receivers have run: of a call that ends
        early, those of one signal would otherwise miss what those of another have seen. After five
        seconds the receivers go on by themselves, of up to a thousand calls. When the task is
        cancelled again, they are as well.
        """
        plan = self._plan_for(sender)
        if plan.stock is None:
            responses: list[tuple[Receiver, Any]] = await _to_its_end(
                functools.partial(self._asend_all, plan, sender, named)
            )
            return responses
        if hygiene.has_async_work(plan.stock):
            await hygiene.run_async(plan.stock)
        return list(plan.stock_responses)

    async def _asend_all(
        self, plan: _Plan, sender: Any, named: dict[str, Any]
    ) -> list[tuple[Receiver, Any]]:
        try:
            return await self._acall_all(plan, sender, named)
        finally:
            if self._afterwards and hygiene.has_async_work(self._afterwards):
                await hygiene.run_async(self._afterwards)

    async def _acall_all(
        self, plan: _Plan, sender: Any, named: dict[str, Any]
    ) -> list[tuple[Receiver, Any]]:
        live = [(_receiver(it), run) for it, run in plan.steps]
        plain = [(it, run) for it, run in live if it is not None and not iscoroutinefunction(it)]
        stock = [run for _, run in plain if run is not None]
        responses: list[tuple[Receiver, Any]] = []
        if len(stock) < len(plain):

            def call() -> None:
                for receiver, run in plain:
                    if run is not None:
                        responses.append((receiver, run()))
                        continue
                    try:
                        responses.append((receiver, receiver(signal=self, sender=sender, **named)))
                    except StopIteration as error:
                        # A future can't have it: before Python 3.12 nobody would ever be told.
                        raise RuntimeError("A receiver raised StopIteration") from error

            await hygiene.run_on_sync_thread(call)
        else:
            await hygiene.run_async(stock)
            responses.extend((receiver, None) for receiver, _ in plain)
        asynchronous = [it for it, _ in live if it is not None and iscoroutinefunction(it)]
        if asynchronous:
            outcomes = await asyncio.gather(
                *(_outcome(it(signal=self, sender=sender, **named)) for it in asynchronous)
            )
            for receiver, (response, leaving) in zip(asynchronous, outcomes, strict=True):
                if leaving is not None:
                    raise leaving
                responses.append((receiver, response))
        return responses

    def send(self, sender: Any, **named: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers in order; the first exception ends it and propagates."""
        plan = self._plan_for(sender)
        if plan.stock is not None:
            for run in plan.stock:
                run()
            return list(plan.stock_responses)
        try:
            if plan.left_to_django:
                return super().send(sender, **named)
            return self._send_all(plan, sender, named)
        finally:
            for run in self._afterwards:
                run()

    def _send_all(
        self, plan: _Plan, sender: Any, named: dict[str, Any]
    ) -> list[tuple[Receiver, Any]]:
        responses: list[tuple[Receiver, Any]] = []
        # As in Django, who is alive is settled before the first receiver runs.
        for receiver, run_stock in [(_receiver(it), run) for it, run in plan.steps]:
            if receiver is None:
                continue
            response = None
            if run_stock is not None:
                run_stock()
            else:
                response = receiver(signal=self, sender=sender, **named)
            responses.append((receiver, response))
        return responses

    def _plan_for(self, sender: Any) -> _Plan:
        plan, receivers = self._plan, self.receivers
        if (
            plan is None
            or plan.receivers is not receivers
            or plan.length != len(receivers)
            or sender is not None
        ):
            plan = self._make_plan(sender)
        return plan

    def _make_plan(self, sender: Any) -> _Plan:
        # Under the lock that guards the list: a plan of an older list is then in its place before
        # disconnect() throws it away.
        with self.lock:
            receivers = self.receivers
            references = [
                reference
                for (_, sender_id), reference, *_ in receivers
                if sender_id in (id(None), id(sender))  # as Django has it
            ]
            live = [_receiver(reference) for reference in references]
            stock = [_STOCK.get(id(it)) for it in live]
            only_stock = None not in stock and len(references) == len(receivers)
            plan = _Plan(
                receivers=receivers,
                length=len(receivers),
                stock=tuple(run for run in stock if run is not None) if only_stock else None,
                stock_responses=(
                    tuple((it, None) for it in live if it is not None) if only_stock else ()
                ),
                steps=tuple(zip(references, stock, strict=True)),
                left_to_django=any(iscoroutinefunction(it) for it in live),
            )
            if sender is None:
                self._plan = plan
        return plan


async def _to_its_end(work: Callable[[], Awaitable[Any]]) -> Any:
    """Await what `work` returns in a task of its own, spared by the first cancellation of this one.

    That follows, whatever `work` raises then, which is logged.
    """
    context = contextvars.copy_context()
    task = asyncio.get_running_loop().create_task(_settled(work), context=context)
    try:
        cancelled = await _spared(task)
        result, error = task.result()
    except asyncio.CancelledError:
        if task.done():  # or its context is that of something that runs, as asgiref notes there
            adopt(context)
        raise
    finally:  # not of the GeneratorExit of one that is collected, in whatever context that is
        del task  # it would keep what is raised here, and that this frame
    adopt(context)
    try:
        if cancelled and not isinstance(error, KeyboardInterrupt | SystemExit):
            _log_late(error)
            raise asyncio.CancelledError
        if error is not None:
            raise error
        return result
    finally:
        del error


async def _spared(task: "asyncio.Task[Any]") -> bool:
    """Wait for a task that the first cancellation of this one does not end, nor keep it for long.

    Returns:
        Whether this one was cancelled meanwhile.
    """
    current = asyncio.current_task()
    # One that was cancelled before is not cancelled again, and must not wait for ever.
    limit = _SPARED if current is not None and current.cancelling() else None
    cancelled = False
    try:
        await asyncio.wait({task}, timeout=limit)
    except asyncio.CancelledError:
        cancelled = True
        try:
            await asyncio.wait({task}, timeout=_SPARED)
        except asyncio.CancelledError:
            task.cancel()
            raise
    if not task.done():
        _leave(task)
        raise asyncio.CancelledError
    return cancelled


def _leave(task: "asyncio.Task[Any]") -> None:
    """Have a task go on by itself, if there are not too many: it keeps what its call was sent."""
    if len(_left) >= _MOST_LEFT:
        _left.difference_update([it for it in tuple(_left) if it.get_loop().is_closed()])
    if len(_left) >= _MOST_LEFT:
        task.cancel()
        return
    _left.add(task)

    def end(task: "asyncio.Task[Any]") -> None:
        _left.discard(task)
        if not task.cancelled():
            _log_late(task.result()[1])

    task.add_done_callback(end)


def _log_late(error: BaseException | None) -> None:
    if error is not None:
        logger.error("A receiver raised for a call that was cancelled", exc_info=error)


async def _settled(work: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    """What was returned or raised: a task that held an exception would keep all its frames."""
    try:
        return await work(), None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


async def _outcome(answer: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What a receiver returned, or by what it means to leave.

    That must leave the call's task and not another one: there it would end the loop, and with it
    every other call.
    """
    try:
        return await answer, None
    except (KeyboardInterrupt, SystemExit) as error:
        return None, error


def _receiver(reference: Any) -> Receiver | None:
    """The receiver itself, or None when it was referenced weakly and has gone."""
    return reference() if isinstance(reference, weakref.ReferenceType) else reference
