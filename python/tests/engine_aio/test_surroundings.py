"""What a server is given to call before and after everything that runs for a call."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest

from .support import OURS, PATIENCE, handler

if OURS:
    from django_grpc import engine
    from django_grpc.engine.coroutines import run_unary

pytestmark = pytest.mark.skipif(not OURS, reason="the engine's own")


class Notes:
    """Surroundings, and what runs inside: each note with the thread or task that made it."""

    def __init__(self):
        self._notes = queue.SimpleQueue()

    def note(self, what):
        try:
            place = asyncio.current_task()
        except RuntimeError:
            place = threading.current_thread()
        self._notes.put((what, place))

    def start(self):
        self.note("start")

    def enter(self):
        self.note("enter")

    def leave(self):
        self.note("leave")

    def begin(self):
        self.note("begin")

    def end(self):
        self.note("end")

    def until(self, last, times=1):
        """All notes until one has come so many times, by their place in the order of these.

        Without the threads that only started: the pool may start one more on a busy machine.
        """
        places = {}
        while times:
            what, place = self._notes.get(timeout=PATIENCE)
            places.setdefault(place, []).append(what)
            times -= what == last
        return [made for made in places.values() if made != ["start"]]


@pytest.fixture
def notes():
    return Notes()


def make_interceptor(notes, *, is_async):
    if is_async:

        class Async(grpc.aio.ServerInterceptor):
            async def intercept_service(self, continuation, handler_call_details):
                notes.note("async")
                return await continuation(handler_call_details)

        return Async()

    class Plain(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            notes.note("plain")
            return continuation(handler_call_details)

    return Plain()


def methods(notes):
    def unary(request, context):
        notes.note("method")
        return request

    def stream(request, context):
        try:
            notes.note("method")
            yield request
        finally:
            notes.note("closed")

    async def coroutine(request, context):
        notes.note("method")
        return request

    async def generator(request, context):
        try:
            notes.note("method")
            yield request
        finally:
            notes.note("closed")

    return {
        "Unary": handler("unary_unary", unary),
        "Stream": handler("unary_stream", stream),
        "Coroutine": handler("unary_unary", coroutine),
        "Generator": handler("unary_stream", generator),
    }


@pytest.fixture
def surrounded(serve_threaded, notes):
    """Serve those methods inside of the notes, through interceptors that are given as letters."""

    def start(kinds="", **more):
        interceptors = [make_interceptor(notes, is_async=kind == "a") for kind in kinds]
        served = serve_threaded({**methods(notes), **more}, interceptors=interceptors)
        served.server.surround_calls(notes)
        return served

    return start


@pytest.mark.parametrize("name", ["Unary", "Stream"])
@pytest.mark.parametrize("kinds", ["p", "pp"])
def test_ordinary_call_is_inside_on_one_thread(surrounded, notes, kinds, name):
    kind = "unary_unary" if name == "Unary" else "unary_stream"
    served = surrounded(kinds)
    assert served.messages(kind, name, b"x") == [b"x"]
    inside = ["plain"] * len(kinds) + ["method"] + ["closed"] * (name == "Stream")
    assert notes.until("leave") == [["start", "enter", *inside, "leave"]]


@pytest.mark.parametrize(("name", "inside"), [("Unary", []), ("Stream", ["closed"])])
def test_registered_method_alone_surrounds_itself(surrounded, notes, name, inside):
    served = surrounded()
    kind = "unary_unary" if name == "Unary" else "unary_stream"
    assert served.messages(kind, name, b"x") == [b"x"]
    served.stop()
    assert notes.until((inside or ["method"])[0]) == [["start", "method", *inside]]


@pytest.mark.parametrize("name", ["Coroutine", "Generator"])
def test_async_call_is_inside_its_task(surrounded, notes, name):
    kind = "unary_unary" if name == "Coroutine" else "unary_stream"
    served = surrounded("aa")
    assert served.messages(kind, name, b"x") == [b"x"]
    inside = ["async", "async", "method"] + ["closed"] * (name == "Generator")
    assert notes.until("end") == [["begin", *inside, "end"]]


def test_mixed_interceptors_are_inside_on_their_thread_and_in_the_task(surrounded, notes):
    served = surrounded("papa")
    assert served.unary("Coroutine", b"x") == b"x"
    assert notes.until("end") == [
        ["begin", "async", "async", "method", "end"],
        ["enter", "plain", "plain", "leave"],
    ]


def test_call_that_goes_from_the_loop_to_a_worker(surrounded, notes):
    served = surrounded("a")
    assert served.unary("Unary", b"x") == b"x"
    assert notes.until("leave") == [
        ["begin", "async", "end"],
        ["start", "enter", "method", "leave"],
    ]


def test_call_that_goes_from_a_worker_to_the_loop(surrounded, notes):
    served = surrounded("p")
    assert served.unary("Coroutine", b"x") == b"x"
    found = notes.until("end")
    assert ["begin", "method", "end"] in found
    assert next(it for it in found if it[0] == "start")[:3] == ["start", "enter", "plain"]


def test_cancelled_call_ends_in_its_task(surrounded, notes):
    async def wait(request, context):
        notes.note("method")
        await asyncio.sleep(3600)

    entered = threading.Event()

    async def told(request, context):
        entered.set()
        await wait(request, context)

    served = surrounded("", Wait=handler("unary_unary", told))
    call = served.call("unary_unary", "Wait")
    assert entered.wait(PATIENCE)
    call.cancel()
    assert notes.until("end") == [["begin", "method", "end"]]


def test_callback_is_inside_on_the_thread_that_calls_it(surrounded, notes):
    def method(request, context):
        context.add_callback(lambda: notes.note("callback"))
        return b""

    served = surrounded("", Callback=handler("unary_unary", method))
    served.unary("Callback")
    assert notes.until("leave") == [["enter", "callback", "leave"]]


def test_surroundings_that_raise_are_logged_and_the_call_is_served(surrounded, notes, caplog):
    class Broken:
        def raise_error(self):
            raise ValueError("a surrounding's")

        start = enter = leave = begin = end = raise_error

    served = surrounded("pap")
    served.server.surround_calls(Broken())
    assert served.unary("Unary", b"x") == b"x"
    assert served.unary("Coroutine", b"x") == b"x"
    served.stop()
    assert "a surrounding's" in caplog.text


@contextlib.contextmanager
def running(server):
    """Start a server of one method, that of the request's seconds; gives what calls it."""

    def method(request, context):
        time.sleep(float(request))
        return request

    handlers = {"Sleep": handler("unary_unary", method)}
    server.add_registered_method_handlers("test.Logged", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield functools.partial(channel.unary_unary("/test.Logged/Sleep"), timeout=PATIENCE)
    finally:
        assert server.stop(0).wait(PATIENCE)


@pytest.fixture
def note_logs(notes):
    """Have the lines of a logger noted."""

    class Handler(logging.Handler):
        def emit(self, record):
            notes.note("log")

    handler, loggers = Handler(), []

    def note(name):
        loggers.append(logging.getLogger(name))
        loggers[-1].addHandler(handler)

    yield note
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("comes_first", [True, False])
def test_log_of_calls_is_inside(notes, comes_first):
    server = engine.server()
    if comes_first:
        server.surround_calls(notes)
    server.log_calls(lambda calls, dropped: notes.note("write"))
    if not comes_first:
        server.surround_calls(notes)
    with running(server) as call:
        for _ in range(2):
            call(b"0")
            assert ["enter", "write", "leave"] in notes.until("leave")


def test_watchdog_is_inside(notes, note_logs):
    server = engine.server()
    server.watch_calls(0.05)
    server.surround_calls(notes)
    note_logs("django_grpc.watchdog")
    with running(server) as call:
        call(b"0.2")
    assert ["enter", "log", "leave"] in notes.until("leave")


def test_log_of_the_health_is_inside(notes, note_logs):
    server = engine.server(ThreadPoolExecutor(1))
    server.enable_health(max_queue_wait=0.05)
    server.surround_calls(notes)
    note_logs("django_grpc.health")
    logging.getLogger("django_grpc.health").warning("the test's own")
    assert notes.until("log") == [["log"]]
    with running(server) as call:
        waiting = [call.func.future(b"0.3", timeout=PATIENCE) for _ in range(2)]
        assert any(it[-2:] == ["enter", "log"] for it in notes.until("log"))
        for each in waiting:
            each.result()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_writer_that_fails_gets_the_next_calls(error, caplog):
    """Also where the handler that the failure is logged by fails, too."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise error("the handler's")

    written = queue.SimpleQueue()

    def write(calls, dropped):
        written.put(len(calls))
        raise error("the writer's")

    logger, broken = logging.getLogger("django_grpc"), Broken()
    server = engine.server()
    server.log_calls(write)
    logger.addHandler(broken)
    try:
        with running(server) as call:
            for _ in range(3):
                call(b"0")
                assert written.get(timeout=PATIENCE) == 1
    finally:
        logger.removeHandler(broken)


@pytest.mark.parametrize("name", ["enter", "leave"])
def test_surroundings_that_exit_cost_no_thread(surrounded, notes, name):
    """There are four; a place that was lost would be missing for ever."""

    def leave_python():
        if threading.current_thread().name == "grpc-interceptor":
            sys.exit("a surrounding's")

    served = surrounded("ap")
    setattr(notes, name, leave_python)
    for _ in range(6):
        assert served.unary("Coroutine", b"x") == b"x"


def test_task_that_is_thrown_away_ends_in_no_other_call():
    """The garbage collector comes by in whatever runs then."""
    call = contextvars.ContextVar("call", default=None)
    ended_in = []

    class Context:
        def _request(self):
            return b""

        def _done(self):
            ended_in.append(call.get())

        def __getattr__(self, name):
            return lambda *arguments: None

    async def wait(request, context):
        await asyncio.sleep(0)

    async def begin():
        running.send(None)

    running = run_unary(Context(), wait)
    asyncio.run(begin())
    other = contextvars.copy_context()
    other.run(call.set, "another")
    other.run(running.close)
    assert ended_in[0] is None


def test_server_on_a_loop_has_surroundings_too(serve_aio, notes):
    served = serve_aio(methods(notes), interceptors=[make_interceptor(notes, is_async=True)])
    served.server.surround_calls(notes)
    assert served.unary("Coroutine", b"x") == b"x"
    assert notes.until("end") == [["begin", "async", "method", "end"]]
