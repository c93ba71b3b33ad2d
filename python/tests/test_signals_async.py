"""The signals around async methods: order, colours of receivers, connections."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import queue
import sqlite3
import sys
import threading
import weakref

import grpc
import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.core.cache import caches
from django.db import (
    connection,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings
from harness import PATIENCE, eventually, leave_half_read
from sampleapp.caches import ClosableCache

from django_grpc import hygiene
from django_grpc.hygiene import connection_use, held_connections, loop_calls, sync_thread
from django_grpc.shortage import NoThreadError
from django_grpc.signals import (
    dispatch,
    grpc_got_request_exception,
    grpc_request_finished,
    grpc_request_started,
)
from django_grpc.wrapping.wrapper import SignalWrapper

SERVICE = "test.Async"

pytestmark = pytest.mark.usefixtures("databases_allowed")


@pytest.fixture
def serve(engine_server, started):
    """Serve one method through the wrapper; returns a channel."""

    def serve(kind, method, **options):
        server = engine_server()
        handler = getattr(grpc, f"{kind}_rpc_method_handler")(method, **options)
        SignalWrapper(server).add_registered_method_handlers(SERVICE, {"Method": handler})
        return started(server)

    return serve


def call(channel, kind, request=b"request", **options):
    argument = iter([request]) if kind.startswith("stream") else request
    outcome = getattr(channel, kind)(f"/{SERVICE}/Method")(argument, timeout=PATIENCE, **options)
    return list(outcome) if kind.endswith("stream") else [outcome]


def method_of(kind, style, body):
    if kind.endswith("unary"):

        async def method(request, context):
            return await body(context)

    elif style == "generator":

        async def method(request, context):
            yield await body(context)

    else:

        async def method(request, context):
            await context.write(await body(context))

    return method


KINDS = [
    ("unary_unary", ""),
    ("unary_stream", "generator"),
    ("unary_stream", "write"),
    ("stream_unary", ""),
    ("stream_stream", "generator"),
    ("stream_stream", "write"),
]


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_signals_of_a_call(serve, signal_log, kind, style):
    async def answer(context):
        return b"x"

    assert call(serve(kind, method_of(kind, style, answer)), kind) == [b"x"]
    notes = signal_log.details_until_finished()
    assert [name for name, _ in notes] == ["started", "finished"]
    assert isinstance(notes[0][1]["context"], grpc.aio.ServicerContext)


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_signals_of_a_failure(serve, signal_log, kind, style):
    async def fail(context):
        raise ValueError("bad")

    with pytest.raises(grpc.RpcError, match="bad"):
        call(serve(kind, method_of(kind, style, fail)), kind)
    notes = signal_log.details_until_finished()
    assert [name for name, _ in notes] == ["started", "exception", "finished"]
    assert str(notes[1][1]["exception"]) == "bad"


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_abort_is_no_exception(serve, signal_log, kind, style):
    async def refuse(context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "none")

    with pytest.raises(grpc.RpcError, match="none"):
        call(serve(kind, method_of(kind, style, refuse)), kind)
    assert signal_log.until_finished() == ["started", "finished"]


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_cancelled_call_is_finished(serve, signal_log, kind, style):
    entered = threading.Event()

    async def wait(context):
        entered.set()
        await asyncio.get_running_loop().create_future()

    channel = serve(kind, method_of(kind, style, wait))
    argument = iter([b""]) if kind.startswith("stream") else b""
    method = getattr(channel, kind)(f"/{SERVICE}/Method")
    running = (method.future if kind.endswith("unary") else method)(argument, timeout=PATIENCE)
    assert entered.wait(PATIENCE)
    running.cancel()
    assert signal_log.until_finished() == ["started", "finished"]


@pytest.mark.parametrize("while_sending", ["started", "finished"])
def test_call_cancelled_while_receivers_wait_has_both_signals(serve, while_sending):
    """What has been seen to begin is seen to end, and nothing else."""
    seen, deserialized, gate = queue.SimpleQueue(), threading.Semaphore(0), threading.Event()
    left = contextvars.ContextVar("left by a receiver", default=None)

    def occupy():
        SyncToAsync.single_thread_executor.submit(gate.wait, PATIENCE)

    def deserialize(request):
        deserialized.release()
        return request

    def note_started(request, **kwargs):
        left.set(request)
        seen.put((request, "started"))

    def note_finished(request, **kwargs):
        assert left.get() == request
        seen.put((request, "finished"))

    async def answer(request, context):
        if request == b"first" and while_sending == "finished":
            occupy()
        return b""

    channel = serve("unary_unary", answer, request_deserializer=deserialize)
    method = channel.unary_unary(f"/{SERVICE}/Method")
    grpc_request_started.connect(note_started)
    grpc_request_finished.connect(note_finished)
    try:
        if while_sending == "started":
            occupy()
        first = method.future(b"first", timeout=PATIENCE)
        assert deserialized.acquire(timeout=PATIENCE)
        if while_sending == "finished":
            assert seen.get(timeout=PATIENCE) == (b"first", "started")
        first.cancel()
        # Once the next one is there, the first has been cancelled.
        second = method.future(b"second", timeout=PATIENCE)
        assert deserialized.acquire(timeout=PATIENCE)
        gate.set()
        second.result()
        due = {(b"first", "finished"), (b"second", "started"), (b"second", "finished")}
        due |= {(b"first", "started")} if while_sending == "started" else set()
        assert {seen.get(timeout=PATIENCE) for _ in due} == due
        assert seen.empty()
    finally:
        gate.set()
        grpc_request_started.disconnect(note_started)
        grpc_request_finished.disconnect(note_finished)


def test_receivers_of_both_colours(serve):
    """Ordinary ones run on the thread of sync_to_async, coroutine functions on the loop."""
    seen = {}

    def plain(**kwargs):
        seen["plain"] = threading.get_ident()

    async def asynchronous(**kwargs):
        await asyncio.sleep(0)
        seen["async"] = threading.get_ident()

    async def answer(request, context):
        seen["servicer"] = threading.get_ident()
        seen["sync"] = await sync_to_async(threading.get_ident)()
        return b""

    for receiver in (plain, asynchronous):
        grpc_request_started.connect(receiver)
    try:
        call(serve("unary_unary", answer), "unary_unary")
    finally:
        for receiver in (plain, asynchronous):
            grpc_request_started.disconnect(receiver)
    assert seen["async"] == seen["servicer"]
    assert seen["plain"] == seen["sync"]
    assert seen["plain"] != seen["servicer"]


def forget_connections():
    """Close those of this thread, also of a database in memory, which ignores being closed."""
    for each in connections.all(initialized_only=True):
        BaseDatabaseWrapper.close(each)


def on_sync_thread(work):
    """Run on the thread of `sync_to_async`, after what waits there."""
    return SyncToAsync.single_thread_executor.submit(work).result(PATIENCE)


@pytest.fixture
def database_in_a_file(tmp_path, monkeypatch):
    """One whose connections can be closed, on the thread of `sync_to_async`."""
    monkeypatch.setitem(connections.settings["default"], "NAME", str(tmp_path / "database"))
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)

    def renew():
        forget_connections()
        if hasattr(connections._connections, "default"):
            del connections["default"]

    on_sync_thread(renew)
    yield
    on_sync_thread(renew)


def open_old_connection():
    """What a call leaves behind, and what asks to be closed at the end of every other."""
    forget_connections()
    connection.ensure_connection()
    connection.close_at = 0
    connection.errors_occurred = True


async def answer(request, context):
    return b"answer"


async def answer_stream(request, context):
    yield b"answer"


@pytest.mark.parametrize(
    ("kind", "method"), [("unary_unary", answer), ("unary_stream", answer_stream)]
)
@pytest.mark.parametrize("left", ["nothing", "connection", "unknown"])
def test_method_without_the_orm_never_waits_for_the_others(serve, kind, method, left):
    """The thread of the ORM is busy for as long as these calls run."""
    on_sync_thread(open_old_connection if left == "connection" else forget_connections)
    if left == "unknown":
        held_connections.remember_opening(connection)  # as from a thread that nobody knows
    entered, release = threading.Event(), threading.Event()

    def occupy():
        entered.set()
        assert release.wait(PATIENCE)

    busy = SyncToAsync.single_thread_executor.submit(occupy)
    assert entered.wait(PATIENCE)
    try:
        channel = serve(kind, method)
        for _ in range(20):
            assert call(channel, kind) == [b"answer"]
        assert not busy.done()
    finally:
        release.set()
    on_sync_thread(lambda: None)
    if left == "connection":
        assert on_sync_thread(lambda: connection.errors_occurred) is False


def test_connection_is_changed_on_its_own_thread_only(serve):
    """It may be in the middle of opening: a call that begins meanwhile waits for its turn."""
    seen, entered, release = [], threading.Event(), threading.Event()

    def use():
        forget_connections()
        connection.ensure_connection()
        connection.health_check_enabled = True
        connection.health_check_done = True
        entered.set()
        assert release.wait(PATIENCE)
        seen.append(connection.health_check_done)

    def look():
        seen.append(connection.health_check_done)
        connection.health_check_enabled = False

    channel = serve("unary_unary", answer)
    on_sync_thread(open_old_connection)
    call(channel, "unary_unary")  # now it is known whose connections these are
    busy = SyncToAsync.single_thread_executor.submit(use)
    try:
        assert entered.wait(PATIENCE)
        for _ in range(3):
            assert call(channel, "unary_unary") == [b"answer"]
    finally:
        release.set()
    busy.result(PATIENCE)
    on_sync_thread(look)
    assert seen == [True, False]


def test_only_async_receivers_cost_no_thread(serve):
    seen, release = [], threading.Event()

    async def asynchronous(**kwargs):
        seen.append(asyncio.current_task() is not None)

    busy = SyncToAsync.single_thread_executor.submit(release.wait, PATIENCE)
    grpc_request_finished.connect(asynchronous)
    try:
        channel = serve("unary_unary", answer)
        call(channel, "unary_unary")
        assert not busy.done()
    finally:
        release.set()
        grpc_request_finished.disconnect(asynchronous)
    assert seen == [True]


@pytest.mark.usefixtures("database_in_a_file")
def test_old_connection_is_closed_before_the_queries_of_the_next_call(serve):
    seen = []

    async def method(request, context):
        await sync_to_async(look)()
        return b""

    def look():
        seen.append(connection.connection is None or connection.close_at != 0)

    channel = serve("unary_unary", method)
    on_sync_thread(open_old_connection)
    call(channel, "unary_unary")
    assert seen == [True]


@pytest.fixture
def plain_receiver(request):
    """One that does nothing, of the signal with that name; or none."""

    def receive(**kwargs):
        pass

    signal = {"started": grpc_request_started, "finished": grpc_request_finished}.get(request.param)
    if signal is not None:
        signal.connect(receive)
    yield
    if signal is not None:
        signal.disconnect(receive)


@pytest.mark.usefixtures("database_in_a_file", "plain_receiver")
@pytest.mark.parametrize("plain_receiver", ["none", "started", "finished"], indirect=True)
@pytest.mark.parametrize("sender", [None, object()])
def test_rows_of_a_long_call_outlive_the_ends_of_others(serve, sender):
    """A connection with CONN_MAX_AGE=0 is closed when the last that uses it has ended."""
    others, closed = [], []
    between, go_on = threading.Event(), threading.Event()

    def count():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 UNION SELECT 2")
            return len(cursor.fetchall())

    async def method(request, context):
        if request == b"other":
            await grpc_request_finished.asend(sender, request=request, context=context)
            return str(await sync_to_async(count)()).encode()
        cursor = await sync_to_async(begin)()
        between.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        return str(len(await sync_to_async(cursor.fetchall)())).encode()

    def begin():
        cursor = connection.cursor()
        cursor.execute("SELECT 1 UNION SELECT 2")
        return cursor

    channel = serve("unary_unary", method)
    long = channel.unary_unary(f"/{SERVICE}/Method").future(b"long", timeout=PATIENCE)
    assert between.wait(PATIENCE)
    for _ in range(3):
        others.append(call(channel, "unary_unary", b"other"))
    closed.append(on_sync_thread(lambda: connection.connection is None))
    go_on.set()
    assert long.result() == b"2"
    closed.append(on_sync_thread(lambda: connection.connection is None))
    assert others == [[b"2"]] * 3
    assert closed == [False, True]


@pytest.mark.usefixtures("database_in_a_file", "plain_receiver")
@pytest.mark.parametrize("plain_receiver", ["none", "started", "finished"], indirect=True)
def test_queries_of_a_long_call_stay_in_the_log(serve, settings):
    settings.DEBUG = True
    between, go_on = threading.Event(), threading.Event()

    def count():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return len(connection.queries)

    async def method(request, context):
        await sync_to_async(count)()
        if request == b"long":
            between.set()
            await asyncio.to_thread(go_on.wait, PATIENCE)
        return str(await sync_to_async(count)()).encode()

    channel = serve("unary_unary", method)
    long = channel.unary_unary(f"/{SERVICE}/Method").future(b"long", timeout=PATIENCE)
    assert between.wait(PATIENCE)
    call(channel, "unary_unary", b"other")
    go_on.set()
    assert int(long.result()) == 4


def test_caches_that_a_receiver_uses_are_closed(serve):
    """As after an ordinary method."""

    def use(**kwargs):
        caches["default"].get("key")

    channel = serve("unary_unary", answer)
    ClosableCache.closed.clear()
    grpc_request_finished.connect(use)
    try:
        with override_settings(CACHES={"default": {"BACKEND": "sampleapp.caches.ClosableCache"}}):
            call(channel, "unary_unary")
    finally:
        grpc_request_finished.disconnect(use)
    assert ClosableCache.closed == ["closed"]


@pytest.mark.usefixtures("database_in_a_file")
@pytest.mark.parametrize("place", ["before its first query", "between queries", "in a transaction"])
def test_call_that_ends_during_its_query_leaves_no_old_connection(place):
    """As one does that is cancelled, and one with a task that outlives it."""
    variables = contextvars.copy_context()
    entered, release = threading.Event(), threading.Event()

    def use():
        if place != "before its first query":
            connection.ensure_connection()
        with transaction.atomic() if place == "in a transaction" else contextlib.nullcontext():
            entered.set()
            assert release.wait(PATIENCE)
            if place != "in a transaction":
                connection.cursor().execute("SELECT 1")

    variables.run(hygiene.CALL_HYGIENE.begin)
    on_sync_thread(sync_thread._tidy)  # now it is known whose connections these are
    working = SyncToAsync.single_thread_executor.submit(variables.copy().run, use)
    try:
        assert entered.wait(PATIENCE)
        variables.run(hygiene.CALL_HYGIENE.end)
    finally:
        release.set()
    working.result(PATIENCE)
    # After what the query has put into the queue.
    assert on_sync_thread(lambda: connection.connection is None)


def test_call_of_a_loop_that_nobody_runs_uses_nothing():
    """Its task goes with the loop, and has no end."""
    variables = contextvars.copy_context()
    variables.run(hygiene.CALL_HYGIENE.begin)
    variables.run(connection_use.note_use)
    assert loop_calls.users
    del variables
    gc.collect()
    assert not loop_calls.users


def test_signals_end_no_use_of_a_calls():
    """An interceptor, or a task beside the method, may have rows to read on when it has ended."""

    async def call():
        hygiene.CALL_HYGIENE.begin()
        await grpc_request_started.asend(None, request=None, context=None)
        connection_use.note_use()
        await grpc_request_finished.asend(None, request=None, context=None)
        is_used = bool(loop_calls.users)
        hygiene.CALL_HYGIENE.end()
        return is_used, bool(loop_calls.users)

    assert asyncio.run(call()) == (True, False)


def test_receiver_that_raises(serve, signal_log):
    async def fail(**kwargs):
        raise ValueError("a receiver's")

    async def answer(request, context):
        return b""

    grpc_request_started.connect(fail)
    try:
        with pytest.raises(grpc.RpcError, match="a receiver's"):
            call(serve("unary_unary", answer), "unary_unary")
    finally:
        grpc_request_started.disconnect(fail)
    assert "finished" in signal_log.until_finished()


@pytest.mark.parametrize(("is_old", "closes"), [(True, 1), (False, 0)])
def test_connections_are_closed_as_the_settings_say(serve, is_old, closes):
    """A connection that a call used in sync_to_async is looked at when the call ends, there."""
    closed, threads = [], []

    def use(name):
        connection.ensure_connection()
        threads.append(threading.get_ident())
        if name == b"use":
            connection.close_at = 0 if is_old else None
            # One in memory does not really close.
            connection.close = lambda: closed.append(threading.get_ident())
        else:
            connection.close_at = None
            connection.__dict__.pop("close", None)

    async def method(request, context):
        await sync_to_async(use)(request)
        return b""

    channel = serve("unary_unary", method)
    # One after the other: the end of the first one is over when the next one has begun.
    for _ in range(2):
        call(channel, "unary_unary", b"use")
        call(channel, "unary_unary", b"forget")
    assert set(closed) <= set(threads)
    assert len(set(threads)) == 1
    assert len(closed) >= 2 * closes
    assert bool(closed) == is_old


@pytest.mark.parametrize("signal", [grpc_request_started, grpc_request_finished])
def test_receiver_that_raises_stop_iteration_ends_its_call(serve, signal):
    """A future can't have it: Python 3.11's would never be done."""

    def receive(**named):
        raise StopIteration

    async def method(request, context):
        return b"response"

    signal.connect(receive)
    try:
        with pytest.raises(grpc.RpcError, match="A receiver raised StopIteration") as caught:
            call(serve("unary_unary", method), "unary_unary")
    finally:
        signal.disconnect(receive)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("signal", [grpc_request_started, grpc_request_finished])
def test_async_receiver_that_exits_ends_its_call_alone(serve, signal):
    """In a task of `gather` it would end the loop, and every call that is on it."""

    async def receive(request, **named):
        if request == b"exits":
            sys.exit("a receiver's")

    async def method(request, context):
        if request == b"waits":
            entered.set()
            await asyncio.to_thread(go_on.wait, PATIENCE)
        return b"response"

    entered, go_on = threading.Event(), threading.Event()
    channel = serve("unary_unary", method)
    signal.connect(receive)
    try:
        waiting = channel.unary_unary(f"/{SERVICE}/Method").future(b"waits", timeout=PATIENCE)
        assert entered.wait(PATIENCE)
        with pytest.raises(grpc.RpcError, match="a receiver's") as caught:
            call(channel, "unary_unary", b"exits")
        go_on.set()
        assert waiting.result() == b"response"
    finally:
        go_on.set()
        signal.disconnect(receive)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN


class Held:
    pass


@pytest.mark.parametrize("end", ["is cancelled", "aborts"])
@pytest.mark.parametrize("signal", [None, grpc_request_finished])
def test_what_a_call_held_is_let_go_with_it(serve, signal, end):
    """Not with the garbage, on some other thread: there may be cursors with it."""
    held = []

    def query():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    async def method(request, context):
        kept = Held()
        held.append(weakref.ref(kept))
        await sync_to_async(query)()
        if end == "aborts":
            await context.abort(grpc.StatusCode.ABORTED, "no")
        channel.close()
        await asyncio.sleep(PATIENCE)

    def receiver(**kwargs):
        seen.append(kwargs)

    seen = []
    if signal is not None:
        signal.connect(receiver)
    gc.collect()
    gc.disable()
    try:
        channel = serve("unary_unary", method)
        with pytest.raises(grpc.RpcError):
            call(channel, "unary_unary")
        assert eventually(lambda: held[0]() is None)
    finally:
        gc.enable()
        if signal is not None:
            signal.disconnect(receiver)
    assert len(seen) == (signal is grpc_request_finished)


@pytest.mark.usefixtures("like_a_server")
def test_what_the_collector_finds_of_a_call_gives_no_work_to_an_executor(serve, monkeypatch):
    """It may come by inside of `submit`, which would wait for itself: with it every executor."""
    executor = SyncToAsync.single_thread_executor
    submit = executor.submit
    left, given = [], []
    collector = None

    async def method(request, context):
        if request == b"leaves":
            left.append(await sync_to_async(leave_half_read)())
        else:
            await sync_to_async(int)()
        return b"response"

    def noting(*args):
        if threading.get_ident() == collector:
            given.append(args)
        return submit(*args)

    def is_closed():
        try:
            left[0].fetchone()
        except sqlite3.ProgrammingError:
            return True
        return False

    channel = serve("unary_unary", method)
    call(channel, "unary_unary", b"leaves")
    monkeypatch.setattr(executor, "submit", noting)
    collector = threading.get_ident()
    gc.collect()
    assert given == []
    call(channel, "unary_unary", b"goes on")
    assert eventually(is_closed)


def test_context_of_a_receiver_is_the_calls_whatever_happens(serve):
    """As asgiref has it: what a receiver sets in the context, the code around the call sees."""
    variable = contextvars.ContextVar("variable", default="nothing")
    seen = []

    def set_it(**kwargs):
        variable.set("set")

    async def see_it(**kwargs):
        seen.append(variable.get())

    async def method(request, context):
        raise ValueError

    grpc_got_request_exception.connect(set_it)
    grpc_request_finished.connect(see_it)
    try:
        with pytest.raises(grpc.RpcError):
            call(serve("unary_unary", method), "unary_unary")
        assert eventually(lambda: seen)
    finally:
        grpc_got_request_exception.disconnect(set_it)
        grpc_request_finished.disconnect(see_it)
    assert seen == ["set"]


@contextlib.contextmanager
def receiving(signal, receiver):
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


def send_started(request=None):
    return grpc_request_started.asend(None, request=request, context=None)


def test_exception_of_an_async_receiver_keeps_no_frames():
    class Request:
        pass

    async def refuse(**kwargs):
        raise ValueError("no")

    async def main():
        request = Request()
        reference = weakref.ref(request)
        with contextlib.suppress(ValueError):
            await send_started(request)
        del request
        await asyncio.sleep(0.01)
        return reference() is None

    gc.collect()
    gc.disable()
    try:
        with receiving(grpc_request_started, refuse):
            assert asyncio.run(main())
    finally:
        gc.enable()


def test_receiver_may_set_a_variable_to_none():
    variable = contextvars.ContextVar("unset")

    def clear(**kwargs):
        variable.set(None)

    async def main():
        await send_started()
        return variable.get()

    with receiving(grpc_request_started, clear):
        assert asyncio.run(main()) is None


def send_cancelled(error):
    """Send a signal whose task is cancelled before its receiver raises."""

    async def raise_late(**kwargs):
        await asyncio.sleep(0.05)
        raise error("late")

    async def main():
        async with asyncio.timeout(0.01):
            await send_started()

    with receiving(grpc_request_started, raise_late):
        asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_cancellation_outlasts_what_a_receiver_raises_then(error, caplog):
    with pytest.raises(TimeoutError if error is ValueError else error):
        send_cancelled(error)
    assert ("late" in caplog.text) == (error is ValueError)


@pytest.mark.parametrize("again", [False, True])
def test_receiver_that_hangs_keeps_no_cancelled_call(again, monkeypatch):
    monkeypatch.setattr(dispatch, "_SPARED", 60 if again else 0.05)
    ended = []

    async def hang(**kwargs):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def main():
        sending = asyncio.ensure_future(send_started())
        for _ in range(1 + again):
            await asyncio.sleep(0.05)
            sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    with receiving(grpc_request_started, hang):
        asyncio.run(main())
    assert ended


def test_receivers_that_take_too_long_go_on_without_their_call(monkeypatch):
    monkeypatch.setattr(dispatch, "_SPARED", 0.05)
    may_end, seen = [], []

    async def wait(**kwargs):
        while not may_end:
            await asyncio.sleep(0.01)
        seen.append(kwargs["request"])

    async def main():
        sending = asyncio.ensure_future(send_started("mine"))
        await asyncio.sleep(0.01)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not seen
        may_end.append(True)
        while not seen:
            await asyncio.sleep(0.01)

    with receiving(grpc_request_started, wait):
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert seen == ["mine"]
    assert not dispatch._left


def test_no_more_than_so_many_receivers_go_on(monkeypatch):
    monkeypatch.setattr(dispatch, "_SPARED", 0.05)
    monkeypatch.setattr(dispatch, "_MOST_LEFT", 2)
    begun, ended = [], []

    async def hang(**kwargs):
        begun.append(kwargs["request"])
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(kwargs["request"])

    async def main():
        for number in range(4):
            sending = asyncio.ensure_future(send_started(number))
            while number not in begun:
                await asyncio.sleep(0.001)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        async with asyncio.timeout(10):
            while 3 not in ended:
                await asyncio.sleep(0.001)
        return list(ended)

    with receiving(grpc_request_started, hang):
        for _ in range(2):  # what a loop has taken along counts no more
            begun.clear()
            ended.clear()
            assert asyncio.run(main()) == [2, 3]


def test_call_that_was_cancelled_is_not_held_by_the_next_signal(monkeypatch):
    monkeypatch.setattr(dispatch, "_SPARED", 0.05)

    async def hang(**kwargs):
        await asyncio.sleep(3600)

    async def call():
        try:
            await send_started()
        finally:
            await grpc_request_finished.asend(None, request=None, context=None)

    async def main():
        calling = asyncio.ensure_future(call())
        await asyncio.sleep(0.01)
        calling.cancel()
        await asyncio.wait({calling}, timeout=10)
        return calling.done() and calling.cancelled()

    with receiving(grpc_request_started, hang), receiving(grpc_request_finished, hang):
        assert asyncio.run(main())


def test_call_whose_loop_is_gone_changes_no_variables():
    variable = contextvars.ContextVar("tenant", default="none")

    async def hang(**kwargs):
        await asyncio.sleep(3600)

    async def call():
        variable.set("of the call")
        await send_started()

    loop = asyncio.new_event_loop()
    calling = loop.create_task(call())
    with receiving(grpc_request_started, hang):
        loop.run_until_complete(asyncio.sleep(0.01))
    calling._log_destroy_pending = False
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False
    loop.close()
    del calling, task, loop
    gc.collect()
    assert variable.get() == "none"


def test_log_handler_that_raises_does_not_replace_the_cancellation():
    class Broken(logging.Handler):
        def emit(self, record):
            raise ValueError("the handler's")

    broken = Broken()
    logging.getLogger("django_grpc").addHandler(broken)
    try:
        with pytest.raises(TimeoutError):
            send_cancelled(ValueError)
    finally:
        logging.getLogger("django_grpc").removeHandler(broken)


def test_signals_of_a_cancelled_call_wait_in_order_for_a_thread_that_stands(monkeypatch):
    monkeypatch.setattr(dispatch, "_SPARED", 0.05)
    gate, seen = threading.Event(), []

    def note_started(**kwargs):
        seen.append("started")

    def note_finished(**kwargs):
        seen.append("finished")

    async def call():
        try:
            await send_started()
        finally:
            await grpc_request_finished.asend(None, request=None, context=None)

    async def main():
        standing = asyncio.ensure_future(sync_to_async(gate.wait)(PATIENCE))
        calling = asyncio.ensure_future(call())
        await asyncio.sleep(0.01)
        calling.cancel()
        await asyncio.wait({calling}, timeout=PATIENCE)
        assert calling.cancelled()
        assert not seen
        gate.set()
        await standing
        while len(seen) < 2:
            await asyncio.sleep(0.01)

    with (
        receiving(grpc_request_started, note_started),
        receiving(grpc_request_finished, note_finished),
    ):
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert seen == ["started", "finished"]


def test_signal_after_one_without_a_thread_is_sent(monkeypatch):
    seen = []

    def refuse(*arguments):
        raise RuntimeError("can't start new thread")

    def note(**kwargs):
        seen.append("finished")

    async def call():
        try:
            with monkeypatch.context() as patch:
                patch.setattr(SyncToAsync.single_thread_executor, "submit", refuse)
                await send_started()
        finally:
            await grpc_request_finished.asend(None, request=None, context=None)

    with receiving(grpc_request_started, note), receiving(grpc_request_finished, note):
        with pytest.raises(NoThreadError):
            asyncio.run(call())
    assert seen == ["finished"]


def test_call_without_a_thread_for_its_receivers_is_unavailable(serve, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("can't start new thread")

    async def answer(request, context):
        return request

    def note(**kwargs):
        pass

    channel = serve("unary_unary", answer)
    with receiving(grpc_request_started, note), monkeypatch.context() as patch:
        patch.setattr(SyncToAsync.single_thread_executor, "submit", refuse)
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, "unary_unary")
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "The server has no thread for what asks the database"


def test_thread_that_is_in_use_stays_so():
    """asgiref's guard against a deadlock is not lifted by its own refusal."""

    async def main():
        SyncToAsync.deadlock_context.set(True)
        with pytest.raises(RuntimeError, match="would deadlock"):
            await hygiene.run_on_sync_thread(list)
        return SyncToAsync.deadlock_context.get()

    assert asyncio.run(main())
