"""Async interceptors that give up what they continue with, or continue more than once.

Whatever stands around and inside of them, the outcome is that of async interceptors alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading

import grpc
import grpc.aio
import pytest

from .support import OURS, PATIENCE, handler

if OURS:
    from django_grpc.engine.handlers import HandlerTable

pytestmark = pytest.mark.skipif(not OURS, reason="grpc.aio refuses ordinary interceptors")

#: What whoever would give up waits for; None outside of those.
hung: contextvars.ContextVar[asyncio.Event | None] = contextvars.ContextVar("hung", default=None)


class Plain(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return continuation(details)


class Async(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        return await continuation(details)


def step(details, name):
    return details._replace(method=f"{details.method}.{name}")


class Timeout(Async):
    """Gives up when something inside hangs, by an event instead of a time."""

    waits_for_the_end = True

    async def intercept_service(self, continuation, details):
        try:
            return await self.attempt(continuation, step(details, "t"))
        except TimeoutError:
            return f"fallback of {details.method}"

    async def attempt(self, continuation, details):
        event, outer = asyncio.Event(), hung.get()
        hung.set(event)
        task = asyncio.ensure_future(continuation(details))
        has_hung = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({task, has_hung}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            if self.waits_for_the_end:
                await asyncio.wait({task})
            raise TimeoutError
        finally:
            hung.set(outer)
            has_hung.cancel()
            task.cancel()


class HastyTimeout(Timeout):
    waits_for_the_end = False


class Retry(Timeout):
    async def intercept_service(self, continuation, details):
        try:
            return await self.attempt(continuation, step(details, "1"))
        except TimeoutError:
            return await continuation(step(details, "2"))


class Both(Async):
    async def intercept_service(self, continuation, details):
        ways = (continuation(step(details, name)) for name in "ab")
        return " and ".join(await asyncio.gather(*ways))


class Leaving(Async):
    """Leaves behind what still runs."""

    def __init__(self):
        self.tasks = []

    async def intercept_service(self, continuation, details):
        self.tasks.append(asyncio.ensure_future(continuation(step(details, "left"))))
        return await continuation(step(details, "l"))


class Leaf(Async):
    """Answers or hangs, as it falls out for each way to it."""

    def __init__(self, seed):
        self.seed = seed

    async def intercept_service(self, continuation, details):
        event = hung.get()
        chance = random.Random(f"{self.seed} {details.method}")  # noqa: S311 - as below
        await asyncio.sleep(0)
        if "left" in details.method:
            await asyncio.Event().wait()
        if event is not None and chance.random() < 0.4:
            event.set()
            await asyncio.Event().wait()
        return f"answer to {details.method}"


KINDS = [Plain, Plain, Plain, Async, Timeout, HastyTimeout, Retry, Both, Leaving]


def outcomes(kinds, seed, *, calls, max_threads):
    interceptors = [kind() for kind in kinds]
    table = HandlerTable([*interceptors, Leaf(seed)], max_threads=max_threads, exit_callbacks=[])

    async def resolve():
        async with asyncio.timeout(PATIENCE):
            found = await asyncio.gather(
                *(table.resolve_async(str(number), ()) for number in range(calls))
            )
        left = [task for it in interceptors if isinstance(it, Leaving) for task in it.tasks]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        schedule = table._threads._schedule
        async with asyncio.timeout(PATIENCE):  # no thread waits for what has ended
            while schedule.running or schedule.jobs:
                await asyncio.sleep(0.001)
        return found

    try:
        return asyncio.run(resolve())
    finally:
        table.close()


def test_any_tree_comes_out_as_without_threads():
    for seed in range(200):
        chance = random.Random(seed)  # noqa: S311 - the same ones each time
        kinds = chance.choices(KINDS, k=chance.randint(2, 6))
        alone = [Async if kind is Plain else kind for kind in kinds]
        want = outcomes(alone, seed, calls=3, max_threads=1)
        found = outcomes(kinds, seed, calls=3, max_threads=chance.randint(1, 3))
        assert found == want, (seed, kinds)


def serve_fallback(serve, *interceptors):
    def echo(request, context):
        return request

    return serve({"Echo": handler("unary_unary", echo)}, interceptors=interceptors)


FALLBACK = handler("unary_unary", lambda request, context: b"fallback")


class GivingUp(grpc.aio.ServerInterceptor):
    """Puts a timeout around what it continues with."""

    async def intercept_service(self, continuation, details):
        try:
            return await asyncio.wait_for(continuation(details), 0.05)
        except TimeoutError:
            return FALLBACK


class Stuck(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        await asyncio.Event().wait()


class Working(grpc.ServerInterceptor):
    """Works until somebody else has been served."""

    def __init__(self):
        self.gate = threading.Event()

    def intercept_service(self, continuation, details):
        assert self.gate.wait(PATIENCE)
        return continuation(details)


@pytest.mark.parametrize("around", [[], [Plain()], [Plain(), Async(), Plain()]])
def test_fallback_of_a_timeout_is_served(serve, around):
    served = serve_fallback(serve, *around, GivingUp(), Plain(), Stuck())
    for _ in range(8):  # more than there are threads
        assert served.unary("Echo", b"x") == b"fallback"


def test_fallback_does_not_wait_for_a_thread_that_works(serve):
    working = Working()
    served = serve_fallback(serve, GivingUp(), working)
    try:
        assert served.unary("Echo", b"x") == b"fallback"
    finally:
        working.gate.set()


@pytest.mark.parametrize("around", [[], [Plain()]])
def test_retry_does_not_wait_for_what_was_given_up(serve, around):
    working = Working()

    class Retrying(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            try:
                return await asyncio.wait_for(continuation(details), 0.05)
            except TimeoutError:
                asyncio.get_running_loop().call_later(0.05, working.gate.set)
                return await continuation(details)

    assert serve_fallback(serve, *around, Retrying(), working).unary("Echo", b"x") == b"x"


@pytest.mark.parametrize(("around", "cancels"), [([], True), ([Plain()], True), ([Plain()], False)])
def test_first_of_two_ways_is_taken(serve, around, cancels):
    """The other one never ends by itself; each goes through an ordinary interceptor."""
    ways = iter(range(2))

    class Hedging(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            tasks = [asyncio.ensure_future(continuation(details)) for _ in range(2)]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if cancels:
                for task in pending:
                    task.cancel()
            return done.pop().result()

    class FirstIsStuck(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            if next(ways) == 0:
                await asyncio.Event().wait()
            return await continuation(details)

    served = serve_fallback(serve, *around, Hedging(), Plain(), FirstIsStuck())
    assert served.unary("Echo", b"x") == b"x"
