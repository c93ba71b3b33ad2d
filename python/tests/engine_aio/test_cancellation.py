"""Calls that end without their servicer: what it sees, and what is left behind."""

from __future__ import annotations

import asyncio
import queue
import threading
import time

import grpc
import grpc.aio
import pytest

from .support import KINDS, OURS, PATIENCE, Gate, handler, ours_only


def finish(end, served, call):
    """Have the peer end a call; a deadline passes by itself."""
    if end == "cancel":
        call.cancel()
    elif end == "disconnect":
        served.channel.close()


def blocking(kind, entered, ended, seen):
    """A servicer that waits for good, and says how it ended."""

    async def wait(context):
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            await asyncio.sleep(0)  # a `finally` may await
            seen.append(context.cancelled() or not OURS)
            ended.set()

    async def unary(request, context):
        await wait(context)

    async def stream(request, context):
        yield b"first"
        await wait(context)

    return handler(kind, unary if kind.endswith("unary") else stream)


@pytest.mark.parametrize("end", ["cancel", "disconnect", "deadline"])
@pytest.mark.parametrize("kind", KINDS)
def test_end_of_the_call_cancels_the_task(serve, kind, end):
    entered, ended, seen = Gate(), Gate(), []
    served = serve({"Wait": blocking(kind, entered, ended, seen)})
    timeout = 0.5 if end == "deadline" else 10
    call = served.call(kind, "Wait", timeout=timeout)
    entered.pass_through()
    finish(end, served, call)
    ended.pass_through()
    assert seen == [asyncio.CancelledError, True]


def test_abandoned_generator_is_closed(serve):
    """A generator that waits for room, since its peer does not read, is cancelled and closed."""
    entered, ended = Gate(), Gate()
    counter = [0]

    async def flood(request, context):
        try:
            while True:
                yield b"x" * 10_000
                counter[0] += 1
                entered.set()
        finally:
            ended.set()

    served = serve({"Flood": handler("unary_stream", flood)})
    call = served.call("unary_stream", "Flood")
    next(call)
    entered.pass_through()
    call.cancel()
    ended.pass_through()


@ours_only(
    "there it looks like the end of the requests, so that half an upload passes for the whole"
)
@pytest.mark.parametrize("style", ["iterator", "read"])
def test_waiting_for_a_request_is_cancelled(serve, style):
    entered, ended, seen = Gate(), Gate(), []

    async def collect(requests, context):
        try:
            if style == "iterator":
                async for request in requests:
                    seen.append(request)
                    entered.set()
            else:
                while (request := await context.read()) is not grpc.aio.EOF:
                    seen.append(request)
                    entered.set()
            seen.append("ended")
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            ended.set()
        return b""

    served = serve({"Collect": handler("stream_unary", collect)})
    hold = Gate()

    def requests():
        yield b"one"
        hold.wait(10)

    call = served.method("stream_unary", "Collect").future(requests(), timeout=10)
    entered.pass_through()
    call.cancel()
    ended.pass_through()
    hold.set()
    assert seen == [b"one", asyncio.CancelledError]


@ours_only("grpc.aio says nothing")
def test_servicer_that_swallows_its_cancellation_is_logged(serve, caplog):
    entered, ended, seen = Gate(), Gate(), []

    async def stubborn(request, context):
        context.add_done_callback(lambda _: ended.set())
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            pass
        try:
            await context.write(b"still here")
        except Exception as error:
            seen.append(type(error))

    served = serve({"Stubborn": handler("unary_stream", stubborn)})
    call = served.call("unary_stream", "Stubborn")
    entered.pass_through()
    call.cancel()
    ended.pass_through()
    assert seen == [grpc.aio.InternalError]
    assert "should let asyncio.CancelledError pass" in caplog.text


@ours_only("grpc.aio lets nobody read but the method")
@pytest.mark.parametrize("end", ["return", "cancel"])
def test_tasks_of_a_servicer_that_still_read_hear_of_the_end(serve, end):
    """Several may read at once, and none waits for ever."""
    outcomes, reading = queue.SimpleQueue(), threading.Event()

    async def method(request_iterator, context):
        async def read():
            try:
                outcomes.put(await context.read())
            except Exception as error:
                outcomes.put(type(error))

        tasks.extend(asyncio.create_task(read()) for _ in range(3))
        await asyncio.sleep(0)
        reading.set()
        if end == "cancel":
            await asyncio.sleep(3600)
        await context.write(b"x")

    def requests():
        assert ended.wait(PATIENCE)
        yield b"late"

    tasks, ended = [], threading.Event()
    served = serve({"Method": handler("stream_stream", method)})
    call = served.method("stream_stream", "Method")(requests(), timeout=PATIENCE)
    assert reading.wait(PATIENCE)
    if end == "cancel":
        call.cancel()
    else:
        assert list(call) == [b"x"]
    seen = {outcomes.get(timeout=PATIENCE) for _ in range(3)}
    ended.set()
    assert seen == {grpc.aio.EOF if end == "cancel" else grpc.aio.UsageError}


async def read_all(request_iterator, context):
    while await context.read() is not grpc.aio.EOF:
        pass


async def iterate(request_iterator, context):
    async for _ in request_iterator:
        pass


async def write_all(request_iterator, context):
    while True:
        await context.write(b"x" * 100_000)


@pytest.mark.parametrize("end", ["cancel", "disconnect", "deadline"])
@pytest.mark.parametrize("work", [read_all, iterate, write_all])
def test_servicer_that_waits_for_its_own_task_ends(serve, work, end):
    """The task that reads is woken by the end of the call, and not by that of the servicer."""
    entered, ended = Gate(), Gate()

    async def method(request_iterator, context):
        task = asyncio.create_task(work(request_iterator, context))
        try:
            entered.set()
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.wait([task])
            task.exception()
            ended.set()

    served = serve({"Method": handler("stream_stream", method)})
    requests = queue.SimpleQueue()
    call = served.method("stream_stream", "Method")(
        iter(requests.get, None), timeout=0.5 if end == "deadline" else PATIENCE
    )
    entered.pass_through()
    finish(end, served, call)
    ended.pass_through()
    requests.put(None)


@ours_only("grpc.aio's tasks raise its own errors")
@pytest.mark.parametrize("work", [read_all, iterate, write_all])
def test_task_that_outlives_a_call_whose_peer_has_gone_gives_the_loop_on(serve, work):
    """The servicer returns before the loop hears of the end; what it has begun must not spin."""
    entered, tasks = Gate(), []

    async def method(request_iterator, context):
        tasks.append(asyncio.create_task(work(request_iterator, context)))
        await asyncio.sleep(0)
        entered.set()
        while context.is_active():  # on the loop, which hears of nothing meanwhile
            time.sleep(0.001)

    async def wait(request, context):
        await asyncio.wait(tasks)
        return request

    served = serve(
        {"Method": handler("stream_stream", method), "Wait": handler("unary_unary", wait)}
    )
    requests = queue.SimpleQueue()
    call = served.method("stream_stream", "Method")(iter(requests.get, None), timeout=PATIENCE)
    entered.pass_through()
    call.cancel()
    requests.put(None)
    assert served.method("unary_unary", "Wait")(b"x", timeout=PATIENCE) == b"x"


@ours_only("grpc.aio tells some of the tasks that there is nothing more")
def test_every_task_that_reads_gets_a_request(serve):
    reading = threading.Event()

    def requests():
        assert reading.wait(PATIENCE)
        yield from (b"1", b"2", b"3")

    async def method(request_iterator, context):
        tasks = [asyncio.create_task(context.read()) for _ in range(3)]
        await asyncio.sleep(0)
        reading.set()
        return b"".join(sorted(await asyncio.gather(*tasks)))

    served = serve({"Method": handler("stream_unary", method)})
    call = served.method("stream_unary", "Method").future(requests(), timeout=PATIENCE)
    assert call.result() == b"123"


@ours_only("grpc.aio leaves such a call open")
def test_servicer_that_cancels_itself(serve):
    async def cancel(request, context):
        raise asyncio.CancelledError

    error = serve({"Cancel": handler("unary_unary", cancel)}).failure("unary_unary", "Cancel")
    assert error.code() is grpc.StatusCode.CANCELLED


def test_done_callbacks_of_a_cancelled_call(serve):
    entered, called = Gate(), Gate()

    async def wait(request, context):
        context.add_done_callback(lambda _: called.set())
        entered.set()
        await asyncio.get_running_loop().create_future()

    served = serve({"Wait": handler("unary_unary", wait)})
    call = served.call("unary_unary", "Wait")
    entered.pass_through()
    call.cancel()
    called.pass_through()


@ours_only("it counts calls in its own way")
def test_cancelled_calls_are_given_back(serve):
    """Whatever their end, calls leave nothing behind that would count against the limit."""
    entered, ended, seen = Gate(), Gate(), []
    served = serve(
        {"Wait": blocking("unary_unary", entered, ended, seen)}, maximum_concurrent_rpcs=50
    )
    for _ in range(3):
        calls = [served.call("unary_unary", "Wait") for _ in range(50)]
        entered.pass_through()
        for call in calls:
            call.cancel()
        pause = Gate()
        for _ in range(500):
            statistics = served.server.statistics()
            if (statistics["calls_active"], statistics["calls_on_loop"]) == (0, 0):
                break
            pause.wait(0.01)
        assert (statistics["calls_active"], statistics["calls_on_loop"]) == (0, 0)
