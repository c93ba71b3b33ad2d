"""Interceptors of both kinds, any mix of them, any number of calls at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest
from asgiref.local import Local

from django_grpc.engine import coroutines

from .support import OURS, PATIENCE, Gate, handler, ours_only

pytestmark = pytest.mark.skipif(not OURS, reason="grpc.aio refuses ordinary interceptors")

trail: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("trail", default=())


class Async(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, handler_call_details):
        trail.set((*trail.get(), "async"))
        await asyncio.sleep(0)
        return await continuation(handler_call_details)


class Plain(grpc.ServerInterceptor):
    def intercept_service(self, continuation, handler_call_details):
        trail.set((*trail.get(), "plain"))
        return continuation(handler_call_details)


NAMES = {Async: "async", Plain: "plain"}


async def tell_trail(request, context):
    return " ".join(trail.get()).encode()


async def yield_trail(request, context):
    yield await tell_trail(request, context)


def tell_trail_plainly(request, context):
    return " ".join(trail.get()).encode()


def yield_trail_plainly(request, context):
    yield tell_trail_plainly(request, context)


def echo(request, context):
    return request


METHODS = {
    "Trail": handler("unary_unary", tell_trail),
    "PlainTrail": handler("unary_unary", tell_trail_plainly),
    "Plain": handler("unary_unary", echo),
}
STREAMS = {
    "Trails": handler("unary_stream", yield_trail),
    "PlainTrails": handler("unary_stream", yield_trail_plainly),
}

MIXES = [mix for n in (1, 2, 3, 4) for mix in itertools.product(NAMES, repeat=n)]


@pytest.mark.parametrize("kinds", MIXES)
def test_any_mix_for_many_calls_at_once(serve, kinds):
    served = serve({**METHODS, **STREAMS}, interceptors=[kind() for kind in kinds])
    calls = [
        served.method("unary_unary", name).future(b"x", timeout=PATIENCE)
        for _ in range(20)
        for name in METHODS
    ]
    streams = [served.call("unary_stream", name) for _ in range(10) for name in STREAMS]
    # What each has set, those inside see, and the method, whichever side it is on.
    told = " ".join(NAMES[kind] for kind in kinds).encode()
    assert {call.result() for call in calls} == {b"x", told}
    assert {message for stream in streams for message in stream} == {told}


@pytest.mark.parametrize("kinds", MIXES[:6])
def test_what_interceptors_set_stays_with_its_call(serve, kinds):
    """Also on the pool that a method asks for, whose threads have a context of their own."""
    own = contextvars.ContextVar("own", default=b"nothing")

    class Once(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            if dict(details.invocation_metadata).get("mark"):
                own.set(b"marked")
            return continuation(details)

    class OnceAsync(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            if dict(details.invocation_metadata).get("mark"):
                own.set(b"marked")
            return await continuation(details)

    async def tell(request, context):
        return own.get()

    def tell_plainly(request, context):
        return own.get()

    def tell_on_pool(request, context):
        return own.get()

    tell_on_pool.experimental_thread_pool = ThreadPoolExecutor(1)
    methods = {it.__name__: handler("unary_unary", it) for it in (tell, tell_plainly, tell_on_pool)}
    interceptors = [(Once if kind is Plain else OnceAsync)() for kind in kinds]
    served = serve(methods, interceptors=interceptors)
    for _ in range(10):
        for name in methods:
            assert served.unary(name, metadata=[("mark", "1")]) == b"marked"
            assert served.unary(name) == b"nothing"


def test_calls_that_are_all_between_two_interceptors_at_once(serve):
    """None passes the async one before all are there, each with an ordinary one around it."""
    count = 50
    arrived = []

    class Meeting(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            arrived.append(None)
            while len(arrived) < count:
                await asyncio.sleep(0.001)
            return await continuation(handler_call_details)

    served = serve(METHODS, interceptors=[Plain(), Meeting(), Plain(), Async(), Plain()])
    method = served.method("unary_unary", "Plain")
    calls = [method.future(b"x", timeout=PATIENCE) for _ in range(count)]
    assert [call.result() for call in calls] == [b"x"] * count


def test_consecutive_ordinary_ones_share_a_thread_with_those_that_wait(serve):
    threads = []

    class Where(Plain):
        def intercept_service(self, continuation, handler_call_details):
            threads.append(threading.current_thread())
            return super().intercept_service(continuation, handler_call_details)

    served = serve(METHODS, interceptors=[Where(), Where(), Async(), Where(), Async(), Where()])
    assert served.unary("Plain", b"x") == b"x"
    assert len(threads) == 4
    assert len(set(threads)) == 1
    assert threads[0].name == "grpc-interceptor"


def test_default_executor_of_the_loop_is_left_alone(serve_aio):
    executor = ThreadPoolExecutor(1)
    gate = Gate()

    async def occupy():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        return loop.run_in_executor(None, gate.pass_through)

    occupied = serve_aio.loop.run(occupy())
    try:
        served = serve_aio(METHODS, interceptors=[Async(), Plain(), Async(), Plain()])
        assert served.unary("Plain", b"x") == b"x"
        assert not occupied.done()
    finally:
        gate.set()
    executor.shutdown()


def test_error_passes_through_both_kinds(serve):
    seen = []

    class Watching(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            try:
                return continuation(handler_call_details)
            except ValueError as error:
                seen.append(str(error))
                raise

    class Broken(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            raise ValueError("broken")

    served = serve(METHODS, interceptors=[Watching(), Async(), Watching(), Broken()])
    error = served.failure("unary_unary", "Plain")
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "broken" in error.details()
    assert seen == ["broken", "broken"]


def test_ordinary_one_may_recover_from_what_is_inside(serve):
    class Recovering(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            try:
                return continuation(handler_call_details)
            except ValueError:
                return METHODS["Plain"]

    class Broken(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            raise ValueError("broken")

    served = serve(METHODS, interceptors=[Async(), Recovering(), Broken()])
    assert served.unary("Trail", b"x") == b"x"


def test_call_that_ends_while_its_thread_waits_sets_the_thread_free(serve):
    """More such calls than there are threads: each gives its own back."""
    raised = []
    inside = threading.Semaphore(0)

    class Waiting(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            try:
                return continuation(handler_call_details)
            except concurrent.futures.CancelledError:
                raised.append(threading.current_thread())
                raise

    class Stuck(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            if handler_call_details.method.endswith("Plain"):
                return await continuation(handler_call_details)
            inside.release()
            await asyncio.get_running_loop().create_future()

    served = serve(METHODS, interceptors=[Waiting(), Stuck(), Waiting()])
    for _ in range(3):
        calls = [served.method("unary_unary", "Trail").future(b"") for _ in range(8)]
        for _ in calls:
            assert inside.acquire(timeout=PATIENCE)
        for call in calls:
            call.cancel()
        assert served.unary("Plain", b"x") == b"x"
    served.stop()
    deadline = threading.Event()
    for _ in range(1000):
        if len(raised) == 24:
            break
        deadline.wait(PATIENCE / 1000)
    assert len(raised) == 24


def test_call_that_ends_while_its_thread_works_does_not_go_on(serve):
    entered, gate, went_on = threading.Event(), Gate(), []
    done = threading.Event()

    class Working(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            entered.set()
            gate.pass_through()
            try:
                return continuation(handler_call_details)
            except concurrent.futures.CancelledError:
                done.set()
                raise

    class Noting(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            went_on.append(handler_call_details.method)
            return await continuation(handler_call_details)

    served = serve(METHODS, interceptors=[Working(), Noting()])
    call = served.method("unary_unary", "Trail").future(b"")
    assert entered.wait(PATIENCE)
    call.cancel()
    served.stop()  # the task has been told when this returns
    gate.set()
    assert done.wait(PATIENCE)
    assert went_on == []


def test_call_that_ends_while_it_waits_for_a_thread_never_runs(serve):
    ran, gate = queue.SimpleQueue(), Gate()

    class Busy(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            ran.put(handler_call_details.method.rpartition("/")[2])
            gate.pass_through()
            return continuation(handler_call_details)

    class Queued(Async):
        async def intercept_service(self, continuation, handler_call_details):
            if handler_call_details.method.endswith("Trail"):
                asyncio.get_running_loop().call_soon(queued.set)
            return await super().intercept_service(continuation, handler_call_details)

    queued = threading.Event()
    served = serve(METHODS, interceptors=[Queued(), Busy()])
    method = served.method("unary_unary", "Plain")
    calls = [method.future(b"x", timeout=PATIENCE) for _ in range(4)]  # as many as threads
    assert [ran.get(timeout=PATIENCE) for _ in calls] == ["Plain"] * 4
    waiting = served.method("unary_unary", "Trail").future(b"x", timeout=PATIENCE)
    assert queued.wait(PATIENCE)
    waiting.cancel()
    while served.server.statistics()["calls_on_loop"] > 4:
        time.sleep(0.001)
    gate.set()
    assert [call.result() for call in calls] == [b"x"] * 4
    assert served.unary("Plain", b"x") == b"x"
    assert [ran.get(timeout=PATIENCE)] == ["Plain"]
    assert ran.empty()


def test_thread_that_cannot_start_costs_the_call_of_that_moment(serve, monkeypatch):
    served = serve(METHODS, interceptors=[Async(), Plain()])
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        for _ in range(3):
            error = served.failure("unary_unary", "Plain")
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert error.details() == "The server has no thread for its interceptors"
    assert served.unary("Plain", b"x") == b"x"


def named(handler_call_details):
    return dict(handler_call_details.invocation_metadata).get("name")


class Halting(grpc.aio.ServerInterceptor):
    """Holds the calls that have a gate, once each."""

    def __init__(self, *names):
        self.inside = queue.SimpleQueue()
        self.gates = {name: threading.Event() for name in names}

    async def intercept_service(self, continuation, handler_call_details):
        if (gate := self.gates.get(named(handler_call_details))) is not None:
            self.inside.put(named(handler_call_details))
            await asyncio.to_thread(gate.wait, PATIENCE)
        return await continuation(handler_call_details)


def begin(served, name):
    method = served.method("unary_unary", "Plain")
    return method.future(b"x", metadata=[("name", name)], timeout=PATIENCE)


def test_surplus_threads_that_leave_take_no_wake_up_with_them(serve):
    back, gate = threading.Semaphore(0), Gate()

    class Staying(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            found = continuation(handler_call_details)
            if named(handler_call_details) in ("b", "c", "d"):
                back.release()
                gate.pass_through()
            return found

    halting = Halting("a", "b", "c", "d")  # as many as threads
    served = serve(METHODS, interceptors=[Staying(), halting])
    calls = {name: begin(served, name) for name in halting.gates}
    assert {halting.inside.get(timeout=PATIENCE) for _ in calls} == set(calls)
    for brief in [begin(served, "brief") for _ in range(16)]:  # threads that step in
        assert brief.result() == b"x"
    halting.gates["a"].set()
    assert calls["a"].result() == b"x"
    for name in "bcd":
        halting.gates[name].set()
        assert back.acquire(timeout=PATIENCE)
    for _ in range(3):  # one thread of four is free
        assert begin(served, "brief").result() == b"x"
    gate.set()
    assert [call.result() for call in calls.values()] == [b"x"] * 4


def refuse_threads(patch):
    real = threading.Thread.start

    def start(thread):
        if thread.name == "grpc-interceptor":
            raise RuntimeError("can't start new thread")
        real(thread)

    patch.setattr(threading.Thread, "start", start)


def test_call_is_refused_when_all_threads_wait_and_none_can_be_started(serve, monkeypatch):
    halting = Halting("long")
    served = serve(METHODS, interceptors=[Plain(), halting])
    long = begin(served, "long")
    assert halting.inside.get(timeout=PATIENCE) == "long"
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        error = begin(served, "brief").exception()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "The server has no thread for its interceptors"
    assert begin(served, "brief").result() == b"x"
    halting.gates["long"].set()
    assert long.result() == b"x"


def test_queued_calls_are_refused_when_their_last_thread_begins_to_wait(serve, monkeypatch):
    entered, gate = threading.Event(), Gate()

    class Working(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            entered.set()
            gate.pass_through()
            return continuation(handler_call_details)

    halting = Halting("long")
    served = serve(METHODS, interceptors=[Working(), halting])
    long = begin(served, "long")
    assert entered.wait(PATIENCE)
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        brief = begin(served, "brief")
        while served.server.statistics()["calls_on_loop"] < 2:
            time.sleep(0.001)
        gate.set()
        assert brief.exception().code() is grpc.StatusCode.UNAVAILABLE
    halting.gates["long"].set()
    assert long.result() == b"x"


def test_thread_that_was_refused_is_asked_for_again(serve, monkeypatch):
    entered, gate, refused = threading.Event(), Gate(), threading.Event()

    class Working(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            if named(handler_call_details) == "long":
                entered.set()
                gate.pass_through()
            return continuation(handler_call_details)

    real = threading.Thread.start

    def start(thread):
        if thread.name == "grpc-interceptor" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        real(thread)

    served = serve(METHODS, interceptors=[Async(), Working()])
    long = begin(served, "long")
    assert entered.wait(PATIENCE)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert begin(served, "brief").result() == b"x"  # while the other one still runs
    assert refused.is_set()
    gate.set()
    assert long.result() == b"x"


def test_function_that_returns_an_awaitable_is_async(serve):
    """An interceptor of grpc.aio's need not be marked as a coroutine function."""

    class Unmarked(grpc.aio.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            return continuation(handler_call_details)

    served = serve(METHODS, interceptors=[Unmarked(), Plain(), Unmarked()])
    assert served.unary("Plain", b"x") == b"x"


class Asked(grpc.GenericRpcHandler):
    """Makes its handler call by call, of what is around it."""

    def __init__(self):
        self.seen = []

    def service(self, handler_call_details):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self.seen.append((threading.current_thread().name, loop))
        return METHODS["Trail"] if handler_call_details.method.endswith("Asked") else None


@pytest.mark.parametrize("interceptors", [[], [Plain()], [Async()], [Async(), Plain()]])
def test_generic_handler_is_asked_on_the_loop_of_an_asyncio_server(serve_aio, interceptors):
    asked = Asked()

    async def start():
        served.server.add_generic_rpc_handlers((asked,))

    served = serve_aio(METHODS, interceptors=interceptors)
    serve_aio.loop.run(start())
    assert served.unary("Asked") is not None
    assert asked.seen == [(asked.seen[0][0], serve_aio.loop.loop)]
    assert served.unary("Plain", b"x") == b"x"
    unknown = served.failure("unary_unary", "None")
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


@ours_only("grpcio's server has no async interceptors")
@pytest.mark.parametrize("interceptors", [[], [Plain()], [Async()], [Async(), Plain()]])
def test_generic_handler_is_asked_on_a_thread_of_an_ordinary_server(serve_threaded, interceptors):
    asked = Asked()
    served = serve_threaded(METHODS, interceptors=interceptors)
    served.server.add_generic_rpc_handlers((asked,))
    assert served.unary("Asked") is not None
    assert [loop for _, loop in asked.seen] == [None]


def test_threads_end_with_their_server(serve):
    def names():
        return [it for it in threading.enumerate() if it.name == "grpc-interceptor"]

    before = names()
    ended = []
    served = serve(METHODS, interceptors=[Async(), Plain()])
    served.server.on_worker_exit(lambda: ended.append(threading.current_thread().name))
    assert served.unary("Plain", b"x") == b"x"
    threads = [it for it in names() if it not in before]
    assert threads
    served.stop()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert "grpc-interceptor" in ended


def test_what_asgiref_keeps_for_a_thread_is_not_carried():
    """Django's clients of caches among it: two threads must not use one at the same time."""
    local = Local()
    before = contextvars.copy_context()
    local.client = object()
    assert coroutines.changes(before) is None
    trail.set(("set",))
    assert coroutines.changes(before) == {trail: ("set",)}
    trail.set(())
