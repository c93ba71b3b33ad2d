"""Deadlines: grpc-timeout on the server's side."""

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
    failure,
    of_kind,
    ours_only,
    stream_unary,
    unary_stream,
    unary_unary,
)


def remaining_for(serve, timeout):
    """time_remaining() as a servicer sees it for a raw grpc-timeout."""
    seen = []
    served = serve({"Call": unary_unary(lambda _r, c: seen.append(c.time_remaining()) or b"")})
    answer = served.raw().call(f"/{SERVICE}/Call", b"", [("grpc-timeout", timeout)])
    assert answer.grpc_status == 0
    return seen[0]


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("2H", 7200),
        ("90M", 5400),
        ("100S", 100),
        ("100000m", 100),
        ("99999999u", 99.999999),
        ("00000100S", 100),
    ],
)
def test_timeout_units(serve, timeout, seconds):
    """grpc-timeout is 1 to 8 digits and one of H M S m u n (PROTOCOL-HTTP2)."""
    remaining = remaining_for(serve, timeout)
    assert seconds - 20 < remaining <= seconds + 1


def test_greatest_timeout(serve):
    """99,999,999 hours are no reason to overflow."""
    assert remaining_for(serve, "99999999H") > 1e11


@pytest.mark.parametrize("timeout", ["", "5", "S", "5X", "-1S", "1.5S", "5s", "0x5S", "S5"])
def test_malformed_timeout_fails_the_call(serve, timeout):
    """A grpc-timeout that is none fails the call with INTERNAL: the servicer never runs."""
    ran = []
    served = serve({"Call": unary_unary(lambda _r, _c: ran.append(1) or b"")})
    answer = served.raw().call(f"/{SERVICE}/Call", b"", [("grpc-timeout", timeout)])
    assert (answer.http_status, answer.grpc_status) == ("200", 13)
    assert "grpc-timeout" in (answer.grpc_message or "")
    assert ran == []


@pytest.mark.parametrize("timeout", ["0S", "0n"])
def test_timeout_of_nothing_is_past_at_once(serve, timeout):
    """A timeout of 0 ends the call with DEADLINE_EXCEEDED: the servicer never runs."""
    ran = []
    served = serve({"Call": unary_unary(lambda _r, _c: ran.append(1) or b"")})
    answer = served.raw().call(f"/{SERVICE}/Call", b"", [("grpc-timeout", timeout)])
    assert answer.grpc_status == 4
    assert ran == []


@pytest.mark.parametrize("kind", KINDS)
def test_deadline_ends_the_call_for_a_client_that_waits(serve, gate, kind):
    """The server itself answers DEADLINE_EXCEEDED on time, though the servicer still runs.

    A raw client has no timer of its own that could end the call.
    """
    release = gate()

    def body(_context):
        release.pass_through()

    served = serve({"Block": of_kind(kind, body)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Block", [("grpc-timeout", "200m")])
    connection.send_message(stream, b"", end_stream=True)
    answer = connection.response(stream)
    assert not release.is_set()
    assert answer.grpc_status == 4 or answer.reset is not None


@ours_only("grpcio resets the stream or answers, as the moment has it")
def test_deadline_is_answered_with_a_status(serve, gate):
    """A call that ran out of time is answered with DEADLINE_EXCEEDED and grpc's words."""
    release = gate()
    served = serve({"Block": of_kind("unary_unary", lambda _c: release.pass_through())})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Block", [("grpc-timeout", "200m")])
    connection.send_message(stream, b"", end_stream=True)
    answer = connection.response(stream)
    assert (answer.grpc_status, answer.grpc_message) == (4, "Deadline Exceeded")


@pytest.mark.parametrize("kind", KINDS)
def test_deadline_reaches_the_servicer(serve, gate, kind):
    """At the deadline the callbacks run and is_active() is false."""
    called_back, done = gate(), gate()
    active = []

    def body(context):
        context.add_callback(called_back.set)
        called_back.pass_through()
        active.append(context.is_active())
        done.set()

    served = serve({"Block": of_kind(kind, body)})
    error = failure(lambda: served.run(kind, "Block", timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    done.pass_through()
    assert active == [False]


def test_deadline_reaches_a_servicer_whose_client_keeps_silent(serve, gate):
    """The server's own timer works: a raw client that never resets the stream."""
    called_back = gate()

    def body(context):
        context.add_callback(called_back.set)
        called_back.pass_through()

    served = serve({"Block": of_kind("unary_unary", body)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Block", [("grpc-timeout", "200m")])
    connection.send_message(stream, b"", end_stream=True)
    called_back.pass_through()


def test_deadline_ends_the_iteration_of_requests(serve, gate):
    """A servicer that waits for a request gets `grpc.RpcError` at the deadline."""
    done = gate()
    outcome = []

    def wait(requests, _context):
        try:
            outcome.extend(requests)
        except grpc.RpcError:
            outcome.append("RpcError")
            raise
        finally:
            done.set()
        return b""

    served = serve({"Wait": stream_unary(wait)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Wait", [("grpc-timeout", "300m")])
    connection.send_message(stream, b"one")
    done.pass_through()
    # grpcio ends the iteration quietly now and then, as the order of its events has it.
    assert outcome == [b"one", "RpcError"] or not OURS


@ours_only("grpcio leaves the generator to the garbage collector")
def test_deadline_closes_the_generator(serve, gate):
    """A generator that is paused at the deadline is closed: its `finally` runs."""
    closed = gate()

    def endless(_request, _context):
        try:
            while True:
                yield bytes(65_536)
        finally:
            closed.set()

    served = serve({"Endless": unary_stream(endless)})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Endless", [("grpc-timeout", "300m")])
    connection.send_message(stream, b"", end_stream=True)
    closed.pass_through()


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_queued_call_past_its_deadline_never_runs(serve, gate, kind):
    """A call whose deadline passes while it waits for a worker is not run."""
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
    if OURS:
        # The server's own answer: its clock began when the call came, later than a client's.
        connection = served.raw()
        stream = connection.open(f"/{SERVICE}/Call", [("grpc-timeout", "200m")])
        connection.send_message(stream, b"", end_stream=True)
        assert connection.response(stream).grpc_status == 4
    else:
        error = failure(lambda: served.run(kind, "Call", timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    release.set()
    assert blocked.result() == b""
    served.assert_healthy()
    assert ran == []


@ours_only("grpcio runs a stream whose requests are many even after its deadline")
@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
def test_queued_client_stream_past_its_deadline_never_runs(serve, gate, kind):
    """The same holds for calls whose request is a stream."""
    test_queued_call_past_its_deadline_never_runs(serve, gate, kind)


@ours_only("grpcio answers such a call as the moment has it")
def test_queued_call_past_its_deadline_is_answered_without_a_worker(serve, gate):
    """The answer comes while every worker is busy."""
    entered, release = gate(), gate()

    def block(_request, _context):
        entered.set()
        release.pass_through()
        return b""

    served = serve({"Block": unary_unary(block)}, workers=1)
    # Kept: a call that nobody refers to is cancelled.
    _blocking = served.call("unary_unary", "Block")
    entered.pass_through()
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Block", [("grpc-timeout", "100m")])
    connection.send_message(stream, b"", end_stream=True)
    assert connection.response(stream).grpc_status == 4
    assert not release.is_set()


def test_call_that_is_answered_in_time_keeps_its_answer(serve):
    """Many calls with short, sufficient deadlines are all answered, and leave no timer behind."""
    served = serve()
    method = served.unary_unary("Echo")
    calls = [method.future(b"%d" % n, timeout=5) for n in range(300)]
    assert [call.result() for call in calls] == [b"%d" % n for n in range(300)]


def test_deadline_of_one_call_leaves_others_alone(serve, gate):
    """One connection's calls have each their own deadline."""
    release = gate()
    entered = threading.Semaphore(0)

    def block(request, _context):
        entered.release()
        release.pass_through()
        return request

    served = serve({"Block": unary_unary(block)}, workers=4)
    patient = served.unary_unary("Block").future(b"patient", timeout=PATIENCE)
    hasty = served.unary_unary("Block").future(b"hasty", timeout=0.2)
    assert hasty.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    release.set()
    assert patient.result() == b"patient"
