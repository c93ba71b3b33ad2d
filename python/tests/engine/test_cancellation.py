"""Cancellation by the client: what the servicer sees, and what is left behind."""

from __future__ import annotations

import threading

import grpc
import pytest

from .support import (
    KINDS,
    OURS,
    PATIENCE,
    SERVICE,
    echo,
    eventually,
    of_kind,
    ours_only,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)

#: How a peer gives a call up.
DEPARTURES = {
    "reset": lambda connection, stream: connection.reset(stream),
    "close": lambda connection, _stream: connection.close(),
    "tcp reset": lambda connection, _stream: connection.abort(),
}


@pytest.mark.parametrize("departure", DEPARTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_departure_of_the_client_reaches_the_servicer(serve, gate, kind, departure):
    """RST_STREAM, FIN and TCP reset alike run the callbacks and end is_active()."""
    entered, called_back, done = gate(), gate(), gate()
    active = []

    def body(context):
        context.add_callback(called_back.set)
        active.append(context.is_active())
        entered.set()
        called_back.pass_through()
        active.append(context.is_active())
        done.set()

    served = serve({"Block": of_kind(kind, body), "Echo": unary_unary(echo)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Block")
    connection.send_message(stream, b"", end_stream=True)
    entered.pass_through()
    DEPARTURES[departure](connection, stream)
    done.pass_through()
    assert active == [True, False]
    served.assert_healthy()


@pytest.mark.parametrize("departure", DEPARTURES)
def test_departure_ends_the_iteration_of_requests(serve, gate, departure):
    """A servicer that waits for a request gets `grpc.RpcError`, not a quiet end.

    A half of an upload must not pass for the whole.
    """
    first, done = gate(), gate()
    outcome = []

    def collect(requests, _context):
        try:
            for request in requests:
                outcome.append(request)
                first.set()
            outcome.append("ended")
        except grpc.RpcError as error:
            outcome.append(type(error))
            raise
        finally:
            done.set()
        return b""

    served = serve({"Collect": stream_unary(collect), "Echo": unary_unary(echo)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Collect")
    connection.send_message(stream, b"1")
    first.pass_through()
    DEPARTURES[departure](connection, stream)
    done.pass_through()
    # grpcio ends the iteration quietly now and then, as the order of its events has it.
    assert outcome == [b"1", grpc.RpcError] or not OURS
    served.assert_healthy()


def test_iteration_error_of_a_cancelled_call_is_not_logged(serve, gate, caplog):
    """The `grpc.RpcError` of an iteration that the client cancelled is no application error."""
    entered, done = gate(), gate()

    def collect(requests, _context):
        entered.set()
        try:
            list(requests)
        finally:
            done.set()
        return b""

    served = serve({"Collect": stream_unary(collect), "Echo": unary_unary(echo)}, workers=1)
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Collect")
    entered.pass_through()
    connection.reset(stream)
    done.pass_through()
    served.assert_healthy()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_cancellation_by_a_grpc_client(serve, gate):
    """`call.cancel()` of grpc's client ends the call on both sides."""
    entered, called_back = gate(), gate()

    def body(context):
        context.add_callback(called_back.set)
        entered.set()
        called_back.pass_through()

    served = serve({"Block": of_kind("unary_unary", body)})
    call = served.call("unary_unary", "Block")
    entered.pass_through()
    assert call.cancel()
    called_back.pass_through()
    assert call.code() is grpc.StatusCode.CANCELLED


def test_generator_stops_when_its_client_cancels(serve, gate):
    """A generator is asked for no more messages once its client has gone.

    It stops at its next `yield` at the latest, and its `finally` block runs.
    """
    closed = gate()
    count = []

    def endless(_request, _context):
        try:
            while True:
                count.append(1)
                yield bytes(1000)
        finally:
            closed.set()

    served = serve({"Endless": unary_stream(endless), "Echo": unary_unary(echo)})
    call = served.call("unary_stream", "Endless")
    next(call)
    call.cancel()
    closed.pass_through()
    seen = len(count)
    served.assert_healthy()
    assert len(count) == seen


@pytest.mark.parametrize("departure", DEPARTURES)
def test_generator_that_waits_for_its_reader_is_closed(serve, gate, departure):
    """A generator that is paused by flow control is closed when its reader goes."""
    closed = gate()
    threads = []

    def endless(_request, _context):
        threads.append(threading.get_ident())
        try:
            while True:
                yield bytes(65_536)
        finally:
            threads.append(threading.get_ident())
            closed.set()

    served = serve({"Endless": unary_stream(endless), "Echo": unary_unary(echo)})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Endless")
    connection.send_message(stream, b"", end_stream=True)
    answer = connection.streams[stream]
    connection.pump(lambda: len(answer.data) == 65_535)
    DEPARTURES[departure](connection, stream)
    closed.pass_through()
    assert threads[0] == threads[1]
    served.assert_healthy()


@ours_only("grpcio throws nothing into a generator; it is collected when nobody holds it")
def test_generator_is_closed_with_generator_exit(serve, gate):
    """The generator of a call that its client gave up sees GeneratorExit at its `yield`."""
    closed = gate()
    seen = []

    def endless(_request, _context):
        try:
            while True:
                yield bytes(65_536)
        except BaseException as exception:
            seen.append(type(exception))
            raise
        finally:
            closed.set()

    served = serve({"Endless": unary_stream(endless)})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Endless")
    connection.send_message(stream, b"", end_stream=True)
    connection.pump(lambda: len(connection.streams[stream].data) == 65_535)
    connection.reset(stream)
    closed.pass_through()
    assert seen == [GeneratorExit]


@ours_only("grpcio holds no reference but closes nothing")
@pytest.mark.parametrize("ending", ["cancel", "whole"])
def test_iterator_with_a_close_method_is_closed(serve, gate, ending):
    """Any iterator that has a `close` method, as generators do, is closed at the call's end."""
    closed = gate()

    class Rows:
        def __init__(self, count):
            self.left = count

        def __iter__(self):
            return self

        def __next__(self):
            if self.left == 0:
                raise StopIteration
            self.left -= 1
            return bytes(65_536)

        def close(self):
            closed.set()

    served = serve({"Rows": unary_stream(lambda r, _c: Rows(int(r)))})
    if ending == "whole":
        assert len(served.run("unary_stream", "Rows", b"3")) == 3
    else:
        call = served.call("unary_stream", "Rows", b"-1")
        next(call)
        call.cancel()
    closed.pass_through()


def test_answer_of_a_cancelled_call_is_dropped(serve, gate):
    """What a servicer returns after its client has gone harms nobody."""
    entered, cancelled, done = gate(), gate(), gate()

    def late(_request, context):
        context.add_callback(cancelled.set)
        entered.set()
        cancelled.pass_through()
        context.set_trailing_metadata((("too", "late"),))
        done.set()
        return b"too late"

    served = serve({"Late": unary_unary(late), "Echo": unary_unary(echo)}, workers=1)
    call = served.call("unary_unary", "Late")
    entered.pass_through()
    call.cancel()
    done.pass_through()
    served.assert_healthy()


def test_exception_of_a_cancelled_call_is_dropped(serve, gate):
    """An exception after the client has gone leaves the worker whole."""
    entered, cancelled, done = gate(), gate(), gate()

    def late(_request, context):
        context.add_callback(cancelled.set)
        entered.set()
        cancelled.pass_through()
        done.set()
        raise ValueError("too late")

    served = serve({"Late": unary_unary(late), "Echo": unary_unary(echo)}, workers=1)
    call = served.call("unary_unary", "Late")
    entered.pass_through()
    call.cancel()
    done.pass_through()
    served.assert_healthy()


def test_conversation_ends_when_its_client_cancels(serve, gate):
    """A bidirectional servicer is released wherever it waits.

    In its request iterator that is by `grpc.RpcError`, at a `yield` by GeneratorExit.
    """
    done, hold = gate(), gate()
    outcome = []

    def talk(requests, _context):
        try:
            yield next(requests)
            yield next(requests)
        except BaseException as exception:
            outcome.append(type(exception))
            raise
        finally:
            done.set()

    def questions():
        yield b"1"
        hold.pass_through()

    served = serve({"Talk": stream_stream(talk)})
    call = served.stream_stream("Talk")(questions(), timeout=PATIENCE)
    assert next(call) == b"1"
    call.cancel()
    done.pass_through()
    hold.set()
    assert outcome in ([grpc.RpcError], [GeneratorExit]) or not OURS


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_queued_call_that_is_cancelled_never_runs(serve, gate, kind):
    """A call that its client gives up while it waits for a worker is not run."""
    entered, release = gate(), gate()
    ran = []

    def block(_request, _context):
        entered.set()
        release.pass_through()
        return b""

    served = serve(
        {
            "Block": unary_unary(block),
            "Call": of_kind(kind, lambda _context: ran.append(1)),
            "Echo": unary_unary(echo),
        },
        workers=1,
    )
    blocked = served.call("unary_unary", "Block")
    entered.pass_through()
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Call")
    connection.send_message(stream, b"", end_stream=True)
    assert connection.round_trip()
    connection.reset(stream)
    assert connection.round_trip()
    release.set()
    assert blocked.result() == b""
    served.assert_healthy()
    assert ran == []


def test_cancelled_calls_free_their_workers(serve):
    """Twice as many cancelled streams as there are workers leave all of them free."""

    def endless(_request, context):
        while context.is_active():
            yield bytes(10_000)

    served = serve({"Endless": unary_stream(endless), "Echo": unary_unary(echo)}, workers=2)
    for _ in range(4):
        call = served.call("unary_stream", "Endless")
        next(call)
        call.cancel()
    served.assert_healthy()


def test_cancelled_stream_does_not_end_others_of_its_connection(serve):
    """RST_STREAM ends one stream; the others of the connection go on."""

    def talk(requests, _context):
        yield from requests

    served = serve({"Talk": stream_stream(talk)})
    connection = served.raw()
    streams = [connection.open(f"/{SERVICE}/Talk") for _ in range(4)]
    for stream in streams:
        connection.send_message(stream, b"%d" % stream)
        answer = connection.streams[stream]
        assert connection.pump(lambda a=answer: bool(a.data))
    for stream in streams[::2]:
        connection.reset(stream)
    for stream in streams[1::2]:
        connection.send_message(stream, b"still", end_stream=True)
        assert connection.response(stream).messages == [b"%d" % stream, b"still"]


def test_contexts_of_departed_clients_are_not_active(serve, gate):
    """200 calls cut off with their connection are all seen as ended."""
    contexts = []
    release = gate()

    def body(context):
        contexts.append(context)
        release.pass_through()

    served = serve({"Block": of_kind("unary_unary", body)}, workers=20)
    connections = [served.raw() for _ in range(20)]
    for connection in connections:
        stream = connection.open(f"/{SERVICE}/Block")
        connection.send_message(stream, b"", end_stream=True)
    assert eventually(lambda: len(contexts) == 20)
    for connection in connections:
        connection.abort()
    assert eventually(lambda: not any(context.is_active() for context in contexts))
